"""Engine: images and a question in, the target's own answer out."""

import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mmspec.decoder import decode
from mmspec.drafters.base import Drafter
from mmspec.drafters.none import NoDrafter
from mmspec.encoders.features import FeatureCache
from mmspec.errors import ConfigError, InputError, MmspecError
from mmspec.inputs import ControlMode, ImageSource, InputProcessor, from_inputs
from mmspec.kv import PrefixStore
from mmspec.params import (
    DEFAULT_MAX_NEW_TOKENS,
    merged_generation_config,
    requested_max_new_tokens,
    stop_strings,
)
from mmspec.prefiller import CacheInfo, PrefillSettings
from mmspec.requests import Messages, Request, Result, build_request
from mmspec.row import Row
from mmspec.sampling import build_sampler
from mmspec.state import Prompt
from mmspec.stats import StatsRecorder
from mmspec.stream import Piece, TextStream, build_detokenizer
from mmspec.target import Target
from mmspec.tree import TokenTree
from mmspec.verify import VERIFIERS

if TYPE_CHECKING:
    from mmspec.chat import Chat

logger = logging.getLogger(__name__)

AnyPrompt = str | Messages | Prompt | Mapping[str, Tensor] | Request


class Engine:
    """Owns the target, the drafter and the input processor. Can be used from several threads:
    all of a request's state is in its own call."""

    def __init__(
        self,
        target: Target,
        inputs: InputProcessor | None,
        drafter: Drafter | None = None,
        *,
        verifier: str = "coupled",
        max_nodes: int = 24,
        max_rows: int = 8,
        control_tokens: ControlMode = "neutralise",
        fit: Callable[[TokenTree], TokenTree] | None = None,
        prefill_chunk: int | None = None,
        prefix_bytes: int = 0,
        feature_bytes: int = 0,
    ) -> None:
        """`max_nodes` is the budget of drafted nodes a request and step; `max_rows` how many
        requests are decoded together. `fit` turns a drafter's tree into one that the target can
        score. A step prefills `prefill_chunk` prompt tokens. `prefix_bytes` and `feature_bytes`
        bound what is kept from request to request: KV, and what the encoders said. Without
        `inputs` only processed prompts are taken."""
        if verifier not in VERIFIERS:
            raise ConfigError(f"verifier={verifier!r}: expected one of {sorted(VERIFIERS)}")
        self.target = target
        self.inputs = inputs
        self.drafter = drafter or NoDrafter()
        self._verifier = verifier
        self._max_nodes = max_nodes
        self._max_rows = max_rows
        self._control_tokens = control_tokens
        self._fit = fit or (lambda tree: tree)
        sizes = {"prefill_chunk": prefill_chunk or 0, "prefix_bytes": prefix_bytes}
        for name, size in {**sizes, "feature_bytes": feature_bytes}.items():
            if size < 0:
                raise ConfigError(f"{name}={size}: expected 0 (off) or more")
        self._prefill = PrefillSettings(
            PrefixStore(prefix_bytes) if prefix_bytes else None,
            FeatureCache(feature_bytes) if feature_bytes else None,
            prefill_chunk or None,
        )
        if target.cuts.whole_because and (prefix_bytes or prefill_chunk):
            logger.warning(
                "%s: %s; prefix reuse and chunked prefill are off",
                type(target.model).__name__,
                target.cuts.whole_because,
            )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return self.inputs.tokenizer if self.inputs is not None else None

    @overload
    def generate(self, prompt: Sequence[Request] | list[str], **options: Any) -> list[Result]: ...
    @overload
    def generate(self, prompt: AnyPrompt, **options: Any) -> Result: ...
    def generate(self, prompt: Any, **options: Any) -> Result | list[Result]:
        """Generates for one prompt, or for a list of requests (or texts) as a ragged batch.

        `options` are fields of `Request`. A single request that fails raises; in a batch the
        failed one has its `error` in its Result, with the tokens chosen until then, and the
        others finish.
        """
        if _is_batch(prompt):
            return self._run(prompt, options)
        result = self._run([prompt], options)[0]
        if result.error is not None:
            raise result.error
        return result

    def stream(self, prompt: AnyPrompt, **options: Any) -> "Stream":
        """Generates for one prompt, a piece of text at a time. Closing it early frees its KV."""
        row = self._row(build_request(prompt, options), 0)
        return Stream(row, self._decode([row]))

    def chat(
        self,
        *,
        system: str | None = None,
        images: ImageSource | Sequence[ImageSource] = (),
        **options: Any,
    ) -> "Chat":
        """A conversation: each question is asked with all that was said before, of which only the
        new part is computed. `images` go with the first question; `options` are fields of
        `Request` for every turn."""
        from mmspec.chat import Chat  # it holds an engine, as an engine makes it

        return Chat(self, system=system, images=images, options=options)

    def cache_info(self) -> CacheInfo:
        """What is kept from request to request."""
        return self._prefill.info(off_because=self.target.cuts.whole_because)

    def clear_cache(self, namespace: str | None = None) -> None:
        """Forgets what is kept from earlier requests, of all namespaces or of one."""
        for store in (self._prefill.prefixes, self._prefill.features):
            if store is not None:
                store.clear(namespace)

    def _run(self, prompts: Iterable[object], options: Mapping[str, Any]) -> list[Result]:
        results: dict[int, Result] = {}

        def rows() -> Iterator[Row]:
            for index, prompt in enumerate(prompts):
                try:
                    row = self._row(build_request(prompt, options), index)
                except MmspecError as error:
                    results[index] = _failed(error)
                except Exception as error:  # raised again by `generate`, or shown in the Result
                    failure = InputError(f"{type(error).__name__}: {error}")
                    failure.__cause__ = error
                    results[index] = _failed(failure)
                else:
                    yield row

        for row in self._decode(rows()):
            if row.is_done:
                results[row.index] = _result(row, row.take_pieces())
        return [results[index] for index in sorted(results)]

    def _decode(self, rows: Iterable[Row]) -> Iterator[Row]:
        return decode(
            self.target,
            rows,
            verify=VERIFIERS[self._verifier],
            fit=self._fit,
            max_nodes=self._max_nodes,
            max_rows=self._max_rows,
            prefill=self._prefill,
        )

    def _row(self, request: Request, index: int) -> Row:
        """The request, processed and ready for the loop."""
        prompt = self._prompt(request)
        max_new_tokens = self._room(request, prompt)
        model = self.target.model
        config = merged_generation_config(
            model,
            request,
            tokenizer=self.tokenizer,
            prompt_length=prompt.num_tokens,
            max_new_tokens=max_new_tokens,
        )
        seed = secrets.randbits(64) if request.seed is None else request.seed
        stop = stop_strings(config, request)
        if stop and self.tokenizer is None:
            raise InputError("stop strings need a tokenizer, and this engine has none")
        detokenizer = build_detokenizer(
            self.tokenizer, skip_special_tokens=request.skip_special_tokens
        )
        eos = config.eos_token_id
        return Row(
            prompt,
            build_sampler(model, config, request, prompt.token_ids, seed=seed),
            TextStream(detokenizer, stop),
            self.drafter if request.speculate else NoDrafter(),
            eos_token_ids=frozenset([eos] if isinstance(eos, int) else eos or ()),
            max_new_tokens=max_new_tokens,
            index=index,
            namespace=request.namespace if request.reuse else None,
            on_prefill=request.on_prefill,
        )

    def _prompt(self, request: Request) -> Prompt:
        prompt = request.prompt
        if isinstance(prompt, Mapping):
            prompt = from_inputs(prompt, self.target.model.config)
        if not isinstance(prompt, Prompt):
            if self.inputs is None:
                raise InputError(
                    "this engine has no processor: got a text or messages, expected a processed "
                    "prompt; load it with processor="
                )
            prompt = self.inputs.encode(
                prompt,
                images=request.images,
                videos=request.videos,
                raw=request.raw,
                system=request.system,
                tools=request.tools,
                documents=request.documents,
                template_arguments=request.template_arguments,
                control_tokens=request.control_tokens or self._control_tokens,
            )
        if prompt.num_tokens == 0:
            raise InputError("the prompt has no tokens; expected at least one")
        is_text = torch.ones(prompt.num_tokens, dtype=torch.bool)
        for span in prompt.media:  # some families' placeholders lie outside of the embedding
            is_text[span.start : span.stop] = False
        highest = int(prompt.token_ids[is_text].max()) if is_text.any() else 0
        if highest >= self.target.num_embeddings:
            raise InputError(
                f"token id {highest} in the prompt: the model's vocabulary has "
                f"{self.target.num_embeddings} entries; is this the model's own tokenizer?"
            )
        return prompt

    def _room(self, request: Request, prompt: Prompt) -> int:
        """How many tokens may be generated. Raises InputError where they don't fit the context."""
        wanted = requested_max_new_tokens(
            self.target.model, request, prompt_length=prompt.num_tokens
        )
        context = self.target.max_positions
        if context is None:
            return wanted or DEFAULT_MAX_NEW_TOKENS
        room = context - prompt.num_tokens
        if room < (wanted or 1):
            raise InputError(
                f"the prompt has {prompt.num_tokens} tokens and max_new_tokens is "
                f"{wanted or DEFAULT_MAX_NEW_TOKENS}: the model's context holds {context}; shorten "
                f"the prompt, or set max_new_tokens <= {max(room, 0)}"
            )
        return wanted or min(DEFAULT_MAX_NEW_TOKENS, room)


class Stream:
    """The pieces of one answer as they become certain; `result` once it has ended.

    A context manager: leaving it, or `close`, ends the decoding and frees its KV.
    """

    def __init__(self, row: Row, steps: Iterator[Row]) -> None:
        self._row = row
        self._steps = steps
        self._pieces: list[Piece] = []
        self._generator = self._generate()
        self.on_end: Callable[[Result], None] | None = None  # told the answer, whole or closed

    def __iter__(self) -> Iterator[Piece]:
        return self._generator

    def __next__(self) -> Piece:
        return next(self._generator)

    def _generate(self) -> Iterator[Piece]:
        for row in self._steps:
            pieces = row.take_pieces()
            self._pieces += pieces
            yield from pieces
        if self._row.error is not None:
            raise self._row.error
        self._tell_end()

    @property
    def result(self) -> Result:
        """The answer, whole or up to `close`. Raises InputError while it is being generated."""
        if not self._row.is_done:
            raise InputError("the stream has not ended: read its pieces to the end first")
        return _result(self._row, self._pieces)

    def close(self) -> None:
        """Ends the decoding; `result` then holds what was generated, as "closed"."""
        self._generator.close()  # type: ignore[attr-defined]
        self._steps.close()  # type: ignore[attr-defined]
        self._row.close()
        self._pieces += self._row.take_pieces()
        self._tell_end()

    def _tell_end(self) -> None:
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end(self.result)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _is_batch(prompt: object) -> bool:
    """A list of requests or texts, as against one list of chat messages."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str):
        return False
    return all(isinstance(item, Request | str | Prompt) for item in prompt)


def _result(row: Row, pieces: Sequence[Piece]) -> Result:
    assert row.finish_reason is not None
    return Result(
        text="".join(piece.text for piece in pieces),
        tokens=tuple(row.chosen),
        finish_reason=row.finish_reason,
        seed=row.sampler.seed,
        stats=row.stats.finished(row.num_chosen),
        pieces=tuple(pieces),
        error=row.error,
    )


def _failed(error: MmspecError) -> Result:
    return Result("", (), "error", None, StatsRecorder().finished(0), error=error)
