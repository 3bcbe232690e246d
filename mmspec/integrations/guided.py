"""Answers in a form: llguidance says which tokens may come next, any drafter drafts, and the text
is the one that plain decoding under the same masks gives.

    guide = JsonGuide(engine)
    engine.generate(question, logits_processors=[guide.matching({"type": "object", ...})])

Needs `pip install 'mmspec[guided]'`.
"""

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from mmspec.beginnings import num_shared
from mmspec.engine import Engine
from mmspec.errors import InputError, MissingExtraError
from mmspec.integrations.closed_schema import closed
from mmspec.integrations.json_ahead import JsonAhead
from mmspec.reading import Thought
from mmspec.uploads import upload

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_STYLE_TOKENS = 512  # of the answer, that are looked at for how it is written
# Between two tokens of JSON: no model is to write blanks for ever.
_STYLE = {"whitespace_flexible": True, "whitespace_pattern": r"[ \n\t]{1,20}"}


@runtime_checkable
class Form(Protocol):
    """A class of pydantic's."""

    def model_json_schema(self) -> dict[str, Any]: ...


class JsonGuide:
    """One model's vocabulary, as grammars see it: made with the first grammar, which takes a second
    or so, and used by all requests, from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._ahead: JsonAhead

    def matching(
        self, schema: Mapping[str, Any] | Form | None = None, *, behind: str = ""
    ) -> "GrammarProcessor":
        """For answers that are JSON of this schema, or of a pydantic model, with the keys that it
        names and no others; None: any object. One is enough for all requests of an engine; in
        transformers' own generate it is one prompt's. `behind`: rules in llguidance's Lark, of
        which the one named so comes first.

        Raises InputError for a schema that is none or that llguidance does not follow in full, and
        for a model without a fast tokenizer that llguidance can read; MissingExtraError."""
        try:
            from llguidance import LLMatcher
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"JSON by a schema needs llguidance ({error}): pip install 'mmspec[guided]'"
            ) from error
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._read_tokenizer()
                self._ahead = JsonAhead(self._tokenizer)
        try:
            given = _schema_of(schema)
            given = {**given, "x-guidance": {**given.get("x-guidance", {}), **_STYLE}}
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(given))
            if behind:
                lark = f"start: behind json\n{behind}\njson: %json {json.dumps(given)}\n"
                grammar = LLMatcher.grammar_from_lark(lark)
        except (ValueError, TypeError) as error:
            raise InputError(f"no JSON schema: {error}") from error
        is_wrong, told = LLMatcher.validate_grammar_with_warnings(grammar, self._tokenizer)
        if is_wrong or told:
            raise InputError(
                f"this JSON schema cannot be followed: {' '.join(told)}; expected keywords of "
                "JSON Schema that llguidance knows"
            )
        # Compiled here, which takes seconds for a large schema, and no more in the decode loop.
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        made = GrammarProcessor(self._tokenizer, matcher, self._ahead)
        made.again = partial(self.matching, schema)
        return made

    def _read_tokenizer(self) -> "LLTokenizer":
        from llguidance.hf import from_tokenizer

        tokenizer = self._engine.tokenizer
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise InputError(
                f"JSON by a schema needs a fast tokenizer; this model's is a "
                f"{type(tokenizer).__name__}"
            )
        target = self._engine.target
        ends = target.model.generation_config.eos_token_id
        if ends is None:
            ends = tokenizer.eos_token_id
        try:
            return from_tokenizer(
                tokenizer,
                n_vocab=max(target.vocab_size, len(tokenizer)),
                eos_token=list(ends) if isinstance(ends, Sequence) else ends,
            )
        except ValueError as error:
            raise InputError(
                "JSON by a schema needs a tokenizer of bytes, that llguidance can read; it says of "
                f"this model's: {error}"
            ) from error


def _schema_of(given: Mapping[str, Any] | Form | None) -> dict[str, Any]:
    if given is None:
        return {"type": "object"}
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, Form):
        return closed(given.model_json_schema())
    raise InputError(
        f"got one of type {type(given).__name__}; expected a mapping or a pydantic model"
    )


class GrammarProcessor(LogitsProcessor):
    """Forbids the tokens that no text of the grammar goes on with.

    What it says depends on the ids alone: it follows any path, and goes back for another one. A
    path that has left the grammar is not judged: nobody chooses it.
    """

    def __init__(
        self,
        tokenizer: "LLTokenizer",
        matcher: "LLMatcher",
        ahead: JsonAhead,
        prompt_length: int | None = None,
    ) -> None:
        """For one request. `matcher` has the grammar and stays at its beginning. Without
        `prompt_length` the first ids that it is called with are its prompt."""
        self._tokenizer, self._at_begin, self._ahead = tokenizer, matcher, ahead
        self._matcher = matcher.deep_copy()
        self._prompt_length = prompt_length
        self._followed: tuple[int, ...] = ()
        self.again: Callable[..., GrammarProcessor] | None = None  # with something before it

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`input_ids` (nodes, seq), `scores` (nodes, vocab)."""
        if self._prompt_length is None:
            self._prompt_length = input_ids.shape[1]
        judged = scores.clone()
        for node, tokens in enumerate(input_ids[:, self._prompt_length :].tolist()):
            if self._follow(tuple(tokens)):
                allowed = upload(self._allowed(scores.shape[1]), scores.device)
                judged[node].masked_fill_(~allowed, -torch.inf)
        return judged

    def behind(self, thought: Thought) -> "GrammarProcessor":
        """One whose grammar begins behind the reasoning, where the model thinks. What it thinks
        does not spell out the reasoning's end: by its text the answer would begin there."""
        assert self.again is not None, "a request's own is not made for another"
        opening, closing = (
            " ".join(f"<[{token}]>" for token in ids) for ids in (thought.opening, thought.closing)
        )
        end = re.escape(thought.end).replace("/", r"\/")
        told = rf"{opening} THOUGHT {closing} /[ \n]{{0,8}}/"
        rules = [
            f"behind: ({told})?" if opening else f"behind: {told}",
            f"THOUGHT: /(?s:.*)/ & ~/(?s:.*{end}.*)/",
        ]
        return self.again(behind="\n".join(rules))

    def for_request(self, prompt_length: int) -> "GrammarProcessor":
        """One of its own for each, so that it may be given to many."""
        return GrammarProcessor(self._tokenizer, self._at_begin, self._ahead, prompt_length)

    def __deepcopy__(self, memo: object) -> "GrammarProcessor":
        """For another sample of the request, which has its own way."""
        return GrammarProcessor(self._tokenizer, self._at_begin, self._ahead)

    def forced_tokens(self, ids: Sequence[int]) -> Sequence[int]:
        """What the grammar, and the way the text is written so far, leave to come."""
        if self._prompt_length is None or len(ids) < self._prompt_length:
            return ()
        said = tuple(ids[self._prompt_length :])
        kept = num_shared(self._followed, said)
        fork = self._matcher.deep_copy()
        if kept < len(self._followed) and not fork.rollback(len(self._followed) - kept):
            return ()
        if fork.try_consume_tokens(list(said[kept:])) < len(said) - kept:
            return ()
        newest = list(said[-_STYLE_TOKENS:])
        return self._ahead.tokens(fork, self._tokenizer.decode_bytes(newest))

    def _follow(self, tokens: tuple[int, ...]) -> bool:
        """Brings the matcher behind these tokens; False where the grammar does not."""
        kept = num_shared(self._followed, tokens)
        if kept < len(self._followed):
            if not self._matcher.rollback(len(self._followed) - kept):
                self._matcher.reset()
                kept = 0
        count = self._matcher.try_consume_tokens(list(tokens[kept:]))
        self._followed = tokens[: kept + count]
        return len(self._followed) == len(tokens)

    def _allowed(self, vocab_size: int) -> Tensor:
        """(vocab,) bool, on the CPU. Raises InputError where the grammar is too much."""
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise InputError(
                f"the JSON schema cannot be followed any further: {self._matcher.get_error()}; "
                "expected a simpler one"
            )
        bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")[:vocab_size]
        return torch.from_numpy(np.pad(bits, (0, vocab_size - len(bits)))).bool()
