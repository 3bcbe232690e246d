"""Every outcome of a random program, each with its probability: exactness without sampling.

A program takes a `Trace` and asks it for all its randomness. It is run again for every branch that
a run before left untried; branches of probability 0 are not. Uniform numbers are integrated
exactly: all that is ever asked of one is on which side of a threshold it lies.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
H = TypeVar("H", bound=Hashable)


class Drawn(NamedTuple):
    """The children of one node, and what they were drawn from."""

    tokens: list[int]  # in the order they were drawn in
    q: Tensor  # (vocab,)


class Trace:
    """One run's randomness: follows the branches `decided`, then always the first possible one."""

    def __init__(self, decided: tuple[int, ...] = ()) -> None:
        self.probability = 1.0
        self.untried: list[tuple[int, ...]] = []
        self._decided = decided
        self._taken: tuple[int, ...] = ()

    def choose(self, weights: Sequence[float]) -> int:
        """An index, with probability as its weight."""
        possible = [index for index, weight in enumerate(weights) if weight > 0.0]
        place = len(self._taken)
        if place < len(self._decided):
            index = self._decided[place]
        else:
            index = possible[0]
            self.untried += [(*self._taken, other) for other in possible[1:]]
        self._taken += (index,)
        self.probability *= weights[index] / sum(weights)
        return index

    def uniforms(self, count: int) -> "list[Uniform]":
        return [Uniform(self) for _ in range(count)]

    def draw(self, probabilities: Tensor) -> int:
        return self.choose(probabilities.tolist())

    def draw_children(self, q: Tensor, k: int) -> Drawn:
        """As `drafters.draw.draw_level` does, of all its outcomes."""
        left, tokens = q.double().clone(), list[int]()
        for _ in range(min(k, int((q > 0).sum()))):
            tokens.append(self.draw(left))
            left[tokens[-1]] = 0.0
        return Drawn(tokens, q)


class Uniform(float):
    """A number in (0, 1) that is decided no further than it is looked at: once."""

    def __new__(cls, trace: Trace) -> "Uniform":
        return super().__new__(cls, "nan")  # whoever computes with it gets nothing

    def __init__(self, trace: Trace) -> None:
        self._trace: Trace | None = trace

    def __lt__(self, threshold: float) -> bool:
        assert self._trace is not None, "a uniform number was looked at twice"
        trace, self._trace = self._trace, None
        return trace.choose([1.0 - threshold, threshold]) == 1

    def __le__(self, threshold: float) -> bool:
        return self < threshold


def outcomes(program: Callable[[Trace], T]) -> Iterator[tuple[float, T]]:
    """(probability, what the program returned) of each of its runs."""
    pending: list[tuple[int, ...]] = [()]
    while pending:
        trace = Trace(pending.pop())
        result = program(trace)
        pending += trace.untried
        yield trace.probability, result


def distribution(program: Callable[[Trace], H]) -> dict[H, float]:
    """What the program returns -> its probability."""
    total: dict[H, float] = defaultdict(float)
    for probability, result in outcomes(program):
        total[result] += probability
    assert abs(sum(total.values()) - 1.0) < 1e-9
    return dict(total)


def texts_of(
    logits: Callable[[tuple[int, ...]], Tensor],
    prompt: tuple[int, ...],
    options: Mapping[str, Any],
) -> dict[tuple[int, ...], float]:
    """What plain sampling says, prefix by prefix: temperature, then top-k. `logits`: (vocab,)."""
    texts: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(options["max_new_tokens"]):
        longer: dict[tuple[int, ...], float] = defaultdict(float)
        for text, weight in texts.items():
            if text and text[-1] in options.get("eos_token_id", ()):
                longer[text] += weight
                continue
            top = torch.topk(logits(prompt + text), options["top_k"])
            p = torch.softmax(top.values / options["temperature"], -1)
            for token, probability in zip(top.indices.tolist(), p.tolist(), strict=True):
                longer[(*text, token)] += weight * probability
        texts = longer
    return texts
