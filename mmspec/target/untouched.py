"""Modules that nobody has a hand in: only then may what they compute be computed otherwise."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Place:
    """Where a module was found."""

    siblings: dict[str, nn.Module | None]  # its parent's modules
    name: str
    module: nn.Module

    @property
    def is_its_own(self) -> bool:
        """Whether the same module is still there."""
        return self.siblings.get(self.name) is self.module


def places_in(parent: nn.Module) -> list[Place]:
    """Of all modules within."""
    return [
        Place(outer._modules, name, module)
        for outer in parent.modules()
        for name, module in outer._modules.items()
        if module is not None
    ]


def places_of(modules: Sequence[nn.Module], within: nn.Module) -> list[Place]:
    """Of these modules, wherever they are."""
    wanted = set(modules)
    return [place for place in places_in(within) if place.module in wanted]


class Untouched:
    """Whether modules are still where they were found (no adapter in their place), each without a
    hook and without another forward (offloading).

    Asked before every step of hundreds of modules, so all loops are those of C functions.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._siblings = [place.siblings for place in places]
        self._names = [place.name for place in places]
        self._modules = [place.module for place in places]
        self._own = [vars(module) for module in self._modules]

    @property
    def holds(self) -> bool:
        return (
            list(map(dict.get, self._siblings, self._names)) == self._modules
            and not any(map(dict.__contains__, self._own, repeat("forward")))
            # Looked up anew: somebody may have given a module other dictionaries of hooks.
            and (not self._may_have_hooks or all(map(is_plain, self._modules)))
        )

    @property
    def _may_have_hooks(self) -> bool:
        return any(map(dict.get, self._own, repeat("_forward_hooks"))) or any(
            map(dict.get, self._own, repeat("_forward_pre_hooks"))
        )


def is_plain(module: nn.Module) -> bool:
    """Without a forward of its own or hooks of others than transformers, whose hooks hand out what
    a forward was asked to return beside its result."""
    if "forward" in module.__dict__ or module._forward_pre_hooks:
        return False
    return not module._forward_hooks or all(
        hook.__module__ == "transformers.utils.output_capturing"
        for hook in module._forward_hooks.values()
    )


@contextmanager
def forwarding(
    forwards: Iterable[tuple[nn.Module, Callable[..., Any]]], *, over_own: bool = False
) -> Iterator[None]:
    """Modules with other forwards within it, in whatever thread. Those that somebody else has given
    one keep that; with `over_own` they have it again after."""
    given = [(module, forward, module.__dict__.get("forward")) for module, forward in forwards]
    taken = [item for item in given if over_own or item[2] is None]
    try:
        for module, forward, _ in taken:  # __dict__: nn.Module's own setattr takes a microsecond
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, _, former in taken:
            module.__dict__.pop("forward", None)
            if former is not None:
                module.__dict__["forward"] = former
