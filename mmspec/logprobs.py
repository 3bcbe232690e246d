"""Log-probabilities of the chosen and the likeliest tokens, and what is kept of the scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmspec.uploads import upload

LogprobsOf = Literal["raw", "processed"]

_POSITIONS_AT_ONCE = 256  # of a prompt: bounds the copy in float32
_ALIGNED = 4  # float32 values in 16 bytes


@dataclass(frozen=True)
class Candidate:
    """One token at one place."""

    token: int
    logprob: float  # natural logarithm; -inf where a processor forbids the token
    text: str | None = None  # the token decoded by itself; None where no tokenizer can do so


@dataclass(frozen=True)
class TokenLogprobs:
    """One place of the text: the token that stands there, and the likeliest ones."""

    chosen: Candidate
    top: tuple[Candidate, ...]  # falling; those that cannot be chosen are left out

    def with_text(self, decode: Callable[[int], str | None]) -> "TokenLogprobs":
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
        self._logprobs: list[_Likeliest] = []  # (tokens, ...), where the logits lie
        self._num_taken = 0  # of these
        self._prompt_logprobs: list[_Likeliest] = []
        self._has_prompt = False
        self._unsettled: list[tuple[Tensor, int]] = []
        self.scores: list[Tensor] = []  # (1, vocab) float32 each, as stopping criteria get them
        self.logits: list[Tensor] = []  # (1, vocab) float32 each
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
            self._unsettled.append((logits if self._of == "raw" else scores, token))
        if self._keeps_scores:
            self.scores.append(scores.unsqueeze(0).to(torch.float32, copy=True))
        if self._keeps_logits:
            self.logits.append(logits.unsqueeze(0).to(torch.float32, copy=True))

    def settle(self) -> None:
        """What was recorded is worked up: the logits may be overwritten now. Waits for no device;
        to be called once a step."""
        if self._unsettled and self._top is not None:
            rows = torch.stack([scores for scores, _ in self._unsettled])
            tokens = upload([token for _, token in self._unsettled], rows.device)
            self._logprobs.append(_likeliest(rows, tokens, self._top))
            self._unsettled.clear()

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        """Of the tokens recorded so far, copied to the host now."""
        self.settle()
        return _on_host(self._logprobs)

    def take_logprobs(
        self, decode: Callable[[int], str | None] | None
    ) -> tuple[TokenLogprobs, ...]:
        """Of the tokens recorded since the last call, copied to the host now."""
        self.settle()
        fresh, self._num_taken = self._logprobs[self._num_taken :], len(self._logprobs)
        return _named(_on_host(fresh), decode)

    def record_prompt(self, start: int, logits: Tensor, token_ids: Tensor) -> None:
        """`logits` (tokens, vocab) are of what follows the prompt's tokens from index `start` on;
        `token_ids` (seq,) is the whole prompt. Chunks come in order."""
        if self._prompt_top is None:
            return
        if start == 0:
            self._has_prompt, self._prompt_logprobs = True, []
        following = token_ids[start + 1 : start + 1 + logits.shape[0]]
        for first in range(0, following.shape[0], _POSITIONS_AT_ONCE):
            some = following[first : first + _POSITIONS_AT_ONCE]
            part = logits[first : first + some.shape[0]]
            ids = some.to(part.device)
            self._prompt_logprobs.append(_likeliest(part, ids, self._prompt_top))

    def kept(
        self, media: Sequence[range], decode: Callable[[int], str | None] | None
    ) -> KeptScores:
        """All that was asked for. Prompt tokens within `media`, placeholders, have none."""
        # Nothing comes before a prompt's first token.
        prompt: list[TokenLogprobs | None] = []
        if self._has_prompt:
            prompt = [None, *_on_host(self._prompt_logprobs)]
        for index in (i for span in media for i in span if i < len(prompt)):
            prompt[index] = None
        return KeptScores(
            logprobs=None if self._top is None else _named(self.logprobs, decode),
            prompt_logprobs=_named(prompt, decode) if self.wants_prompt else None,
            scores=_stacked(self.scores) if self._keeps_scores else None,
            logits=_stacked(self.logits) if self._keeps_logits else None,
        )


T = TypeVar("T", TokenLogprobs, TokenLogprobs | None)


def _named(places: Sequence[T], decode: Callable[[int], str | None] | None) -> tuple[T, ...]:
    if decode is None:
        return tuple(places)
    return tuple(place and place.with_text(decode) for place in places)


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """(tokens, vocab); (0, 0) of a text that failed before its first token."""
    return torch.cat(list(rows)) if rows else torch.zeros(0, 0)


class _Likeliest(NamedTuple):
    """Log-probabilities at some places, where the logits lie."""

    tokens: Tensor  # (places,) int64, the ones that stand there
    logprobs: Tensor  # (places,) theirs
    top_tokens: Tensor  # (places, top) int64
    top_logprobs: Tensor  # (places, top) falling


def _likeliest(scores: Tensor, tokens: Tensor, top: int) -> _Likeliest:
    """Of `scores` (places, vocab) and the token (places,) at each place."""
    scores = scores if scores.dtype == torch.float64 else scores.float()
    vocab_size = scores.shape[1]
    # On a GPU the order of a row's sum depends on whether it begins at a multiple of 16 bytes.
    if excess := vocab_size % _ALIGNED:
        scores = pad(scores, (0, _ALIGNED - excess), value=-torch.inf)
    logprobs = scores.log_softmax(dim=-1)[:, :vocab_size]
    chosen = logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1)
    best = logprobs.topk(min(top, logprobs.shape[1]), dim=-1)
    return _Likeliest(tokens, chosen, best.indices, best.values)


def _on_host(parts: Sequence[_Likeliest]) -> list[TokenLogprobs]:
    """Of all places of the parts, in their order."""
    if not parts:
        return []
    tokens, chosen, indices, values = (
        torch.cat(list(each)).tolist() for each in zip(*parts, strict=True)
    )
    return [
        TokenLogprobs(
            Candidate(token, value),
            tuple(
                Candidate(t, v) for t, v in zip(likeliest, own, strict=True) if v > -float("inf")
            ),
        )
        for token, value, likeliest, own in zip(tokens, chosen, indices, values, strict=True)
    ]
