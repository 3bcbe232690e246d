"""What may happen while requests are decoded, and must change no text."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

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
def rewritten(draw: random.Random, model: Any) -> Iterator[Callable[[], None]]:
    """Gives what writes some other values into one of the model's weights, as training does, hangs
    in a hook, as steering does, or switches to another adapter where it has some; all is as it was
    behind it."""
    before: dict[nn.Parameter, torch.Tensor] = {}
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks: list[RemovableHandle] = []
    weights = [p for p in model.parameters() if p.ndim == 2]
    adapters = list(getattr(model, "peft_config", ()))
    active = model.active_adapters() if adapters else []

    def rewrite() -> None:
        if adapters and draw.random() < 0.7:
            chosen = draw.choice([*adapters, None])
            model.disable_adapters() if chosen is None else model.enable_adapters()
            if chosen is not None:
                model.set_adapter(chosen)
            return
        if linears and draw.random() < 0.3:
            hooks.append(draw.choice(linears).register_forward_hook(lambda *told: -told[-1]))
            return
        weight = draw.choice(weights)
        before.setdefault(weight, weight.detach().clone())
        with torch.no_grad():
            weight.mul_(draw.choice([-1.0, 0.5, 1.7]))

    try:
        yield rewrite
    finally:
        for hook in hooks:
            hook.remove()
        if adapters:
            model.enable_adapters()
            model.set_adapter(active)
        with torch.no_grad():
            for weight, value in before.items():
                weight.copy_(value)
