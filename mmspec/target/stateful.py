"""Which layers of a model keep running states, as its config tells; and which of its modules read
and write them, as is seen while it reads a few tokens."""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

from mmspec.kv import KVCache, StateKey, StateKind
from mmspec.target.mixers import Mixer, Mixers, is_states


def state_kinds(config: PreTrainedConfig) -> dict[int, StateKind]:
    """Of the text model's layers that keep a running state, what they keep, by layer index: what
    transformers' own cache would."""
    try:
        layers = DynamicCache(config=config).layers
    except (KeyError, TypeError, AttributeError):  # of a kind that has no such cache
        return {}
    return {
        index: StateKind(layer.number_of_states, isinstance(layer, CacheLayerMixin))
        for index, layer in enumerate(layers)
        if isinstance(layer, LinearAttentionCacheLayerMixin)
    }


def cache_keyword(model: PreTrainedModel) -> str:
    """By which name a model's forward takes its cache: of its own where it keeps states alone."""
    parameters = inspect.signature(model.forward).parameters
    return "cache_params" if "cache_params" in parameters else "past_key_values"


class Observer:
    """Sees which modules ask a cache for the states of its layers."""

    def __init__(self, decoder: nn.Module, cache: KVCache) -> None:
        assert cache.states is not None
        self._decoder, self._states = decoder, cache.states
        self._layers = cache.states.layers
        self._mixers: dict[tuple[nn.Module, int], Mixer] = {}

    @property
    def mixers(self) -> Mixers:
        state_bytes = self._states.slots.slot_bytes
        return Mixers(list(self._mixers.values()), state_bytes=state_bytes)

    @contextmanager
    def seeing_states(self) -> Iterator[None]:
        """Within it, a forward of several tokens tells which modules leave states."""

        running: list[nn.Module] = []  # from the outside in

        def see() -> None:
            """What was written since the last look, the innermost module has written."""
            for index, layer in self._layers.items():
                for kind, number in sorted(layer.written):
                    key = running[-1], index
                    mixer = self._mixers.setdefault(key, Mixer(*key))
                    mixer.keys.append(StateKey(index, kind, number))
                layer.written.clear()

        def before(module: nn.Module, *unused: object) -> None:
            see()
            running.append(module)

        def after(module: nn.Module, *unused: object) -> None:
            see()
            running.pop()

        with ExitStack() as stack:
            for module in self._decoder.modules():
                stack.callback(module.register_forward_pre_hook(before).remove)
                stack.callback(module.register_forward_hook(after).remove)
            yield

    @contextmanager
    def seeing_projections(self) -> Iterator[None]:
        """Within it, a forward tells which of their children read the mixers' own input, and which
        makes their output."""
        with ExitStack() as stack:
            for mixer in self._mixers.values():
                for handle in _watched(mixer):
                    stack.callback(handle.remove)
            yield


def _watched(mixer: Mixer) -> Iterator[RemovableHandle]:
    """The hooks by which a mixer's next forward fills in its `inputs` and `output`."""
    seen: list[Tensor] = []  # the mixer's input
    made: list[tuple[nn.Module, Tensor]] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[:] = [v for v in (*args, *kwargs.values()) if is_states(v)][:1]
        made.clear()

    def within(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if kwargs or len(args) != 1 or not isinstance(out, Tensor):
            return
        if seen and args[0] is seen[0]:
            inner = set(module.modules())
            mixer.inputs = [one for one in mixer.inputs if one not in inner] + [module]
        made.append((module, out))

    def after(_: nn.Module, args: object, kwargs: object, out: Any) -> None:
        ends = [module for module, product in made if product is out]
        mixer.output = ends[-1] if ends and ends[-1] not in mixer.inputs else None

    yield mixer.module.register_forward_pre_hook(before, with_kwargs=True)
    for child in mixer.module.modules():
        # A linear layer, an adapted or a quantised one: what treats each token alike.
        if hasattr(child, "in_features") and hasattr(child, "out_features"):
            yield child.register_forward_hook(within, with_kwargs=True)
    yield mixer.module.register_forward_hook(after, with_kwargs=True)
