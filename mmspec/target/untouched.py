"""Modules that nobody has a hand in: only then may what they compute be computed otherwise."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Place:
    """Where a module was found."""

    siblings: dict[str, nn.Module | None]  # its parent's modules
    name: str
    module: nn.Module

    @property
    def is_untouched(self) -> bool:
        """Whether the same module is still there (no adapter in its place), without a hook and
        without another forward (offloading)."""
        return self.is_its_own and is_plain(self.module)

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


def are_untouched(places: Iterable[Place]) -> bool:
    return all(place.is_untouched for place in places)


def is_plain(module: nn.Module) -> bool:
    """Without a forward of its own or hooks of others than transformers, whose hooks hand out what
    a forward was asked to return beside its result."""
    if "forward" in module.__dict__ or module._forward_pre_hooks:
        return False
    return not module._forward_hooks or all(
        hook.__module__ == "transformers.utils.output_capturing"
        for hook in module._forward_hooks.values()
    )
