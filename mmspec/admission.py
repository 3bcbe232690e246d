"""Admission: a request's prompt, processed, checked against the model, and room for its answer."""

import os
import secrets
from collections.abc import Mapping
from dataclasses import replace

import torch

from mmspec.drafters.own_text import prompt_tokens
from mmspec.errors import InputError
from mmspec.inputs import ControlMode, InputProcessor, from_inputs
from mmspec.params import DEFAULT_MAX_NEW_TOKENS, requested_max_new_tokens, with_own_state
from mmspec.requests import Request
from mmspec.state import Prompt
from mmspec.target import Target
from mmspec.target.context import reason_against_scaling
from mmspec.words import counted

_FOUND_BEHIND = 16  # tokens of the prompt
# Tools and template arguments, too; but these say as well how the answer is read.
_PUT_IN = ("images", "videos", "audio", "system", "documents")


class Admission:
    """What the target takes. `control_tokens` holds for requests that say nothing of them."""

    def __init__(
        self, target: Target, inputs: InputProcessor | None, *, control_tokens: ControlMode
    ) -> None:
        self._target = target
        self._inputs = inputs
        self._control_tokens = control_tokens
        self._process = os.getpid()

    def prompt(self, request: Request) -> Prompt:
        """The request's prompt, with what to draft it from. Raises InputError."""
        prompt = request.prompt
        if isinstance(prompt, Mapping):
            _refuse_unread(request)
            prompt = from_inputs(prompt, self._target.model.config)
        if isinstance(prompt, Prompt):
            beside = self._beside(request)
            prompt = replace(prompt, draft_texts=(*prompt.draft_texts, *beside))
        else:
            if self._inputs is None:
                raise InputError(
                    "this engine has no tokenizer or processor (the model's folder holds none, or "
                    "none was given): got a text or messages, expected a processed prompt, as "
                    '{"input_ids": tensor}; or load it with processor=AutoTokenizer.'
                    'from_pretrained("...")'
                )
            prompt = self._inputs.encode(
                prompt,
                images=request.images,
                videos=request.videos,
                audio=request.audio,
                raw=request.raw,
                system=request.system,
                tools=request.tools,
                documents=request.documents,
                passages=request.passages,
                passage_template=request.passage_template,
                template_arguments=request.template_arguments,
                control_tokens=request.control_tokens or self._control_tokens,
            )
        if request.prediction:
            predicted = self._processor(request).answer_tokens(request.prediction)
            before = prompt_tokens(prompt)[-_FOUND_BEHIND:]  # there its first token is looked for
            prompt = replace(prompt, draft_texts=(*prompt.draft_texts, (*before, *predicted)))
        self._check(prompt)
        return replace(prompt, namespace=request.namespace if request.reuse else None)

    def samples(self, request: Request) -> list[Request]:
        """One request a sample. They share the prompt, processed once; of what keeps state
        (processors, criteria) each has its own. Raises InputError, in a forked child too."""
        if os.getpid() != self._process:  # torch's threads, and who held a lock, are gone here
            raise InputError(
                "this engine was loaded in the process that this one was forked from, where torch "
                "would wait for ever; load one in each process (mmspec.load), or only prepare "
                "requests here (engine.prepare)"
            )
        request = replace(request, prompt=self.prompt(request), passages=(), prediction=None)
        seed = secrets.randbits(64) if request.seed is None else request.seed
        first, *others = (
            replace(request, seed=seed, sample=request.sample + i, n=1) for i in range(request.n)
        )
        return [first, *(with_own_state(replace(o, prompt_logprobs=None)) for o in others)]

    def room(self, request: Request, prompt: Prompt) -> int:
        """How many tokens may be generated. Raises InputError where they don't fit the context."""
        wanted = requested_max_new_tokens(
            self._target.model, request, prompt_length=prompt.num_tokens
        )
        context = self._target.max_positions
        if context is None:
            return wanted or DEFAULT_MAX_NEW_TOKENS
        room, size = context - prompt.num_tokens, counted(prompt.num_tokens, "token")
        if room < 1:
            scaled = _rounded_up(prompt.num_tokens + (wanted or 1))
            way_out = (
                f", or scale the model's positions with --set model.context={scaled} (as "
                "overrides= of mmspec.load)"
            )
            if reason_against_scaling(self._target.model.config) is not None:
                way_out = ""
            raise InputError(
                f"the prompt has {size}: the model's context holds {context}, the answer "
                f"included; shorten the prompt{way_out}"
            )
        if room < (wanted or 1):
            raise InputError(
                f"the prompt has {size} and max_new_tokens is {wanted}: the "
                f"model's context holds {context}; shorten the prompt, or set max_new_tokens <= "
                f"{room}"
            )
        return wanted or min(DEFAULT_MAX_NEW_TOKENS, room)

    def _check(self, prompt: Prompt) -> None:
        if prompt.num_tokens == 0:
            raise InputError("the prompt has no tokens; expected at least one")
        is_text = torch.ones(prompt.num_tokens, dtype=torch.bool)
        for span in prompt.media:  # some families' placeholders lie outside of the embedding
            is_text[span.start : span.stop] = False
        ids, most = prompt.token_ids[is_text], self._target.num_embeddings
        unknown = ids[(ids < 0) | (ids >= most)]
        if unknown.numel():
            raise InputError(
                f"token id {int(unknown[0])} in the prompt: the model's vocabulary has {most} "
                "entries; is this the model's own tokenizer?"
            )

    def _beside(self, request: Request) -> tuple[tuple[int, ...], ...]:
        """The request's passages, for a prompt that they cannot be put into any more."""
        if not request.passages:
            return ()
        return self._processor(request).draft_texts(request.passages)

    def _processor(self, request: Request) -> InputProcessor:
        """For the texts beside the prompt."""
        if self._inputs is None:
            given = "passages" if request.passages else "a prediction"
            raise InputError(
                f"this engine has no tokenizer: got {given}, expected token lists as "
                "Prompt.draft_texts; or load it with processor="
            )
        return self._inputs


def _refuse_unread(request: Request) -> None:
    """Raises InputError for what goes into a text or chat, beside a prompt that is processed."""
    given = [name for name in _PUT_IN if _is_given(getattr(request, name))]
    if given:
        raise InputError(
            f"got {' and '.join(given)} beside a processed prompt, which nothing is put into any "
            "more: give a text or messages, or process them together"
        )


def _is_given(value: object) -> bool:
    is_empty = isinstance(value, list | tuple | str | Mapping) and not value
    return value is not None and not is_empty


def _rounded_up(tokens: int, to: int = 4096) -> int:
    return -(-tokens // to) * to
