"""Log-probabilities of the chosen and the likeliest tokens, and what is kept of the scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor

LogprobsOf = Literal["raw", "processed"]

_POSITIONS_AT_ONCE = 256  # of a prompt: bounds the copy in float32


@dataclass(frozen=True)
class Candidate:
    """One token at one place."""

    token: int
    logprob: float  # natural logarithm; -inf where a processor forbids the token
    text: str | None = None  # the token decoded by itself; None without a tokenizer


@dataclass(frozen=True)
class TokenLogprobs:
    """One place of the text: the token that stands there, and the likeliest ones."""

    chosen: Candidate
    top: tuple[Candidate, ...]  # falling; those that cannot be chosen are left out

    def with_text(self, decode: Callable[[int], str]) -> "TokenLogprobs":
        chosen, *top = (replace(c, text=decode(c.token)) for c in (self.chosen, *self.top))
        return TokenLogprobs(chosen, tuple(top))


@dataclass(frozen=True)
class KeptScores:
    """What a row kept; None where it was not asked for."""

    logprobs: tuple[TokenLogprobs, ...] | None  # (tokens,)
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None  # (prompt,)
    scores: Tensor | None  # (tokens, vocab) float32
    logits: Tensor | None  # (tokens, vocab) float32


class ScoreRecorder:
    """What one row keeps of the distributions that its tokens were chosen from.

    `top` is the number of likeliest tokens beside the chosen one, None for no logprobs; they are
    of the target's "raw" logits (log-softmax, as in OpenAI's API and vLLM) or of the "processed"
    scores, the distribution that is sampled from.
    """

    def __init__(
        self,
        *,
        top: int | None = None,
        of: LogprobsOf = "raw",
        prompt_top: int | None = None,
        keeps_scores: bool = False,
        keeps_logits: bool = False,
    ) -> None:
        self.logprobs: list[TokenLogprobs] = []
        self.prompt_logprobs: list[TokenLogprobs | None] = []
        self.scores: list[Tensor] = []  # (vocab,) float32 each
        self.logits: list[Tensor] = []  # (vocab,) float32 each
        self._top = top
        self._of = of
        self._prompt_top = prompt_top
        self._keeps_scores = keeps_scores
        self._keeps_logits = keeps_logits

    @property
    def is_needed(self) -> bool:
        return self._top is not None or self._keeps_scores or self._keeps_logits

    @property
    def wants_prompt(self) -> bool:
        return self._prompt_top is not None

    def record(self, logits: Tensor, scores: Tensor, token: int) -> None:
        """`token` was chosen by `scores`, which the processors made of `logits`, (vocab,) each.

        A greedy row without processors has `scores` that are `logits`, still the model's own.
        """
        if self._top is not None:
            source = logits if self._of == "raw" else scores
            self.logprobs += _logprobs(source.unsqueeze(0), torch.tensor([token]), self._top)
        if self._keeps_scores:
            self.scores.append(scores.to(torch.float32, copy=True))
        if self._keeps_logits:
            self.logits.append(logits.to(torch.float32, copy=True))

    def record_prompt(self, start: int, logits: Tensor, token_ids: Tensor) -> None:
        """`logits` (tokens, vocab) are of what follows the prompt's tokens from index `start` on;
        `token_ids` (seq,) is the whole prompt. Chunks come in order."""
        if self._prompt_top is None:
            return
        if start == 0:
            self.prompt_logprobs = [None]  # nothing comes before the first
        following = token_ids[start + 1 : start + 1 + logits.shape[0]]
        for first in range(0, following.shape[0], _POSITIONS_AT_ONCE):
            some = following[first : first + _POSITIONS_AT_ONCE]
            part = logits[first : first + some.shape[0]]
            self.prompt_logprobs += _logprobs(part, some, self._prompt_top)

    def kept(self, media: Sequence[range], decode: Callable[[int], str] | None) -> KeptScores:
        """All that was asked for. Prompt tokens within `media`, placeholders, have none."""
        prompt = list(self.prompt_logprobs)
        for index in (i for span in media for i in span if i < len(prompt)):
            prompt[index] = None
        return KeptScores(
            logprobs=None if self._top is None else _named(self.logprobs, decode),
            prompt_logprobs=_named(prompt, decode) if self.wants_prompt else None,
            scores=_stacked(self.scores) if self._keeps_scores else None,
            logits=_stacked(self.logits) if self._keeps_logits else None,
        )


T = TypeVar("T", TokenLogprobs, TokenLogprobs | None)


def _named(places: Sequence[T], decode: Callable[[int], str] | None) -> tuple[T, ...]:
    if decode is None:
        return tuple(places)
    return tuple(place and place.with_text(decode) for place in places)


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """(tokens, vocab); (0, 0) of a text that failed before its first token."""
    return torch.stack(list(rows)) if rows else torch.zeros(0, 0)


def _logprobs(scores: Tensor, token_ids: Tensor, top: int) -> list[TokenLogprobs]:
    """Of `scores` (places, vocab) and the token at each place."""
    scores = scores if scores.dtype == torch.float64 else scores.float()
    logprobs = scores.log_softmax(dim=-1)
    chosen = logprobs.gather(1, token_ids.to(scores.device).unsqueeze(1)).squeeze(1).tolist()
    best = logprobs.topk(min(top, logprobs.shape[1]), dim=-1)
    likeliest = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        TokenLogprobs(
            Candidate(token, value),
            tuple(
                Candidate(t, v) for t, v in zip(tokens, values, strict=True) if v > -float("inf")
            ),
        )
        for token, value, (tokens, values) in zip(
            token_ids.tolist(), chosen, likeliest, strict=True
        )
    ]
