"""What may happen while requests are decoded, and must change no text."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from mmspec.engine import Engine

from .cases import Case
from .shelf import Shelf


def meddled(draw: random.Random, case: Case, engine: Engine, shelf: Shelf) -> Case:
    """The same case, at whose steps and chunks of prefill things happen to the engine."""
    own = random.Random(draw.random())
    deeds: list[Callable[[], object]] = [
        engine.clear_cache,
        lambda: engine.clear_cache(own.choice(["", "a", "b"])),
        engine.cache_info,
        lambda: engine.generate(case.prompt, max_new_tokens=2, temperature=0.0),
    ]
    if shelf.is_there:
        deeds.append(shelf.change)

    def happens(*_: int) -> bool:
        if own.random() < 0.2:
            own.choice(deeds)()
        return True

    how = {**case.how, "on_prefill": happens}
    if case.cancel_after is None:
        how["is_wanted"] = happens
    return replace(case, how=how)


@contextmanager
def rewritten(draw: random.Random, model: nn.Module) -> Iterator[Callable[[], None]]:
    """Gives what writes some other values into one of the model's weights, as training does; they
    are what they were behind it."""
    before: dict[nn.Parameter, torch.Tensor] = {}
    weights = [p for p in model.parameters() if p.ndim == 2]

    def rewrite() -> None:
        weight = draw.choice(weights)
        before.setdefault(weight, weight.detach().clone())
        factor = draw.choice([-1.0, 0.5, 1.7])
        with torch.no_grad():
            weight.mul_(factor)

    try:
        yield rewrite
    finally:
        with torch.no_grad():
            for weight, value in before.items():
                weight.copy_(value)
