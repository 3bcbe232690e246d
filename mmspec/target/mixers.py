"""Mixers: modules with a running state, which score a tree level by level.

The state of a node follows from its parent's. So a mixer is called once for each depth of the
trees: the nodes of that depth, of all rows, are a batch of one-token texts, each with a copy of its
parent's state. Every node is computed as plain decoding would, and trees branch as they like. What
is expensive in a mixer, its projections, does not depend on the state, and is computed once for
all nodes.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmspec.attention.interface import KEYWORD, TAP_KEYWORD
from mmspec.kv import KVCache, Levels, LevelSlots, StateKey, StateLayer
from mmspec.kv.state_slots import StateSlots
from mmspec.target.untouched import Place, forwarding, places_in


@dataclass(eq=False)
class Mixer:
    """One module that reads and writes states of one layer."""

    module: nn.Module
    layer: int
    keys: list[StateKey] = field(default_factory=list)
    # Children that project the mixer's own input, and the one whose product is its output.
    inputs: list[nn.Module] = field(default_factory=list)
    output: nn.Module | None = None
    _places: dict[nn.Module, Place] = field(init=False)  # of all children

    def __post_init__(self) -> None:
        self._places = {place.module: place for place in places_in(self.module)}

    def is_alone(self, child: nn.Module) -> bool:
        """Whether the child's product is what the mixer gets: nobody hooked it, and no adapter has
        taken it into itself since."""
        is_hooked = child._forward_hooks or child._forward_pre_hooks
        return not is_hooked and self._places[child].is_its_own

    def forward(
        self,
        own: Callable[..., Any],
        states: StateLayer,
        slots: StateSlots,
        levels: Levels | LevelSlots,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The module's `own` forward of (batch, nodes, ...) inputs, node by node."""
        return _Call(self, own, levels, args, kwargs).run(states, slots)


class Mixers:
    """All mixers of a model, with another forward while attached."""

    def __init__(self, mixers: Sequence[Mixer], *, state_bytes: int = 0) -> None:
        """`state_bytes`: of all their states after a token."""
        self.each = tuple(mixers)
        self.state_bytes = state_bytes

    def attached(self, cache: KVCache, levels: Levels | LevelSlots) -> AbstractContextManager[None]:
        """Within it, one forward computes the nodes of `levels`, and leaves their states there."""
        states = cache.states
        assert states is not None
        forwards = []
        for mixer in self.each:
            given = mixer.module.forward, states.layers[mixer.layer], states.slots, levels
            forwards.append((mixer.module, partial(mixer.forward, *given)))
        return forwarding(forwards, over_own=True)


def is_states(value: object) -> bool:
    """Whether a mixer's argument is what it mixes, (batch, seq, hidden)."""
    return isinstance(value, Tensor) and value.ndim == 3


class _Call:
    """One mixer's share of one score call."""

    def __init__(
        self,
        mixer: Mixer,
        own: Callable[..., Any],
        levels: Levels | LevelSlots,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._mixer, self._own = mixer, own
        names = list(inspect.signature(own).parameters) if args else []
        given = [*zip(names, args, strict=False), *kwargs.items()]
        hidden = next(value for _, value in given if is_states(value))
        self._size = hidden.shape[0], hidden.shape[1]
        self._levels = levels.on(hidden.device)
        self._hidden = self._by_node(hidden).tensor
        # No node is padding, and whom attention listens to is nothing to a mixer.
        self._args = [
            None if "mask" in name else self._by_node(v) for name, v in given[: len(args)]
        ]
        self._kwargs = {
            name: None if "mask" in name else self._by_node(value)
            for name, value in kwargs.items()
            if name not in (KEYWORD, TAP_KEYWORD)
        }

    def run(self, states: StateLayer, slots: StateSlots) -> Any:
        """All nodes' outputs, (batch, nodes, ...); padding's are any."""
        mixer = self._mixer
        outputs: list[Any] = []
        delayed: list[Tensor] = []
        inputs = [module for module in mixer.inputs if mixer.is_alone(module)]
        last = mixer.output
        if last is not None and not mixer.is_alone(last):
            last = None
        at, left = _At(), dict[StateKey, Tensor]()
        others: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = [
            (module, _Known(module.forward(self._hidden), at)) for module in inputs
        ]
        if last is not None:
            others.append((last, _Delay(delayed)))
        with forwarding(others, over_own=True):
            levels = self._levels
            for size, source, own in zip(levels.sizes, levels.sources, levels.slots, strict=True):
                at.nodes = nodes = range(at.nodes.stop, at.nodes.stop + size)
                found = left if source is None else slots.gather(mixer.keys, source)
                states.load(mixer.layer, found)
                args = [_cut(value, nodes) for value in self._args]
                kwargs = {name: _cut(value, nodes) for name, value in self._kwargs.items()}
                outputs.append(self._own(*args, **kwargs))
                taken = states.taken(mixer.layer)
                made = {key: taken[key] for key in mixer.keys if key in taken}
                left = slots.scatter(made, own)
        if last is not None:
            return self._by_place(last.forward(torch.cat(delayed)))
        return self._joined(outputs)

    def _by_node(self, value: Any) -> Any:
        """(nodes, 1, ...) of what is (batch, nodes, ...); anything else as it is."""
        if isinstance(value, tuple):
            return tuple(self._by_node(part) for part in value)
        batch, nodes = self._size
        if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[1] != nodes:
            return value
        if value.shape[0] not in (1, batch):
            return value
        flat = value.expand(batch, *value.shape[1:]).flatten(0, 1)
        order = self._levels.order
        flat = flat[: sum(self._levels.sizes)] if order is None else flat.index_select(0, order)
        return _Nodes(flat.unsqueeze(1))

    def _joined(self, outputs: list[Any]) -> Any:
        """One output of those of all levels."""
        first = outputs[0]
        if isinstance(first, tuple):
            return tuple(self._joined([out[i] for out in outputs]) for i in range(len(first)))
        return self._by_place(torch.cat(outputs)) if isinstance(first, Tensor) else first

    def _by_place(self, value: Tensor) -> Tensor:
        """(batch, nodes, ...) of (nodes, 1, ...)."""
        batch, nodes = self._size
        flat, back = value.squeeze(1), self._levels.back
        if back is not None:
            flat = flat.index_select(0, back)
        elif flat.shape[0] < batch * nodes:
            rest = flat.new_zeros(batch * nodes - flat.shape[0], *flat.shape[1:])
            flat = torch.cat([flat, rest])
        return flat.view(batch, nodes, *flat.shape[1:])


class _Nodes(NamedTuple):
    """What has an entry for each node, (nodes, 1, ...)."""

    tensor: Tensor


def _cut(value: Any, nodes: range) -> Any:
    if isinstance(value, _Nodes):
        return value.tensor[nodes.start : nodes.stop]
    return tuple(_cut(part, nodes) for part in value) if type(value) is tuple else value


@dataclass
class _At:
    """The nodes that are computed now."""

    nodes: range = range(0)


@dataclass
class _Known:
    """A projection's forward: its products are there."""

    products: Tensor  # (nodes, 1, out_features)
    at: _At

    def __call__(self, states: Tensor) -> Tensor:
        return self.products[self.at.nodes.start : self.at.nodes.stop]


@dataclass
class _Delay:
    """A projection's forward: its inputs are kept, and handed on in its place."""

    inputs: list[Tensor]

    def __call__(self, states: Tensor) -> Tensor:
        self.inputs.append(states)
        return states
