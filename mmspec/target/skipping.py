"""Decoder layers that are left out while a target drafts for itself."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from mmspec.errors import ModelError
from mmspec.target.tower import TextTower
from mmspec.target.untouched import forwarding


class SkippedLayers:
    """The text tower's decoder layers, of which `skipped` hand on what they get while attached.

    A skipped layer writes no keys; nothing is missing afterwards, as the target's score of the
    same tokens writes those of all layers. With all layers above some one skipped it is an early
    exit (LayerSkip, arXiv 2404.16710).
    """

    def __init__(self, model: PreTrainedModel, *, packing: Collection[nn.Module] = ()) -> None:
        """`packing`: layers seen to hand on a tuple (`seeing_packing`). Raises ModelError for a
        model whose decoder layers are not found."""
        self._layers = decoder_layers(model)
        self.lending = _lending(self._layers)
        self._packing = frozenset(packing)
        self.skipped: frozenset[int] = frozenset()  # set between two forwards, never within one

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def chosen(self, skipped: Iterable[int]) -> frozenset[int]:
        """Checked: raises ValueError for a layer that is not there or cannot be missed, or when
        none would be left."""
        chosen = frozenset(skipped)
        outside = sorted(index for index in chosen if not 0 <= index < self.num_layers)
        if outside or len(chosen) >= self.num_layers:
            raise ValueError(
                f"got {sorted(chosen)}, expected some of the layers 0 to {self.num_layers - 1}, "
                "not all"
            )
        if chosen & self.lending:
            raise ValueError(
                f"got {sorted(chosen)}, but later layers read keys, or an index's choice, of "
                f"{sorted(self.lending)}: leave these in"
            )
        return chosen

    @property
    def num_bytes(self) -> int:
        return 0

    def within(self, tower: TextTower) -> TextTower | None:
        """The tower without them."""
        return tower.without([self._layers[index] for index in self.skipped])

    @property
    def state(self) -> frozenset[int]:
        return self.skipped

    def attached(self) -> AbstractContextManager[None]:
        """Within it, the skipped layers do nothing, in whatever thread; so it holds a target's
        lock (`Target.variant`)."""
        chosen = [self._layers[index] for index in self.skipped]
        return forwarding(
            (layer, _hand_on_packed if layer in self._packing else _hand_on) for layer in chosen
        )


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The text tower's layers in order. Raises ModelError where they are not found."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    for module in model.get_decoder().modules():  # from the outside in
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ModelError(
        f"{type(model).__name__}: its text tower has no list of {count} decoder layers, so none "
        "can be skipped; take another drafter than layer_skip"
    )


def _lending(layers: Sequence[nn.Module]) -> frozenset[int]:
    """Those that later layers cannot do without: they read their keys in place of own ones
    (Gemma 3n, Gemma 4), or have no index, and so need one that has chosen before (HY-V4)."""
    lending = {i for i, layer in enumerate(layers) if _has(layer, "store_full_length_kv")}
    if any(_has(layer, "skip_topk") for layer in layers):
        lending.add(0)
    return frozenset(lending)


def _has(layer: nn.Module, name: str) -> bool:
    return any(getattr(part, name, False) for part in layer.modules())


@contextmanager
def seeing_packing(model: PreTrainedModel) -> Iterator[set[nn.Module]]:
    """Within it, forwards of the model put the decoder layers that hand on a tuple into what it
    yields."""
    packing: set[nn.Module] = set()

    def see(module: nn.Module, _: object, out: object) -> None:
        if isinstance(out, tuple):
            packing.add(module)

    with ExitStack() as stack:
        with suppress(ModelError):  # no layers are found: none is ever skipped
            for layer in decoder_layers(model):
                stack.callback(layer.register_forward_hook(see).remove)
        yield packing


def _hand_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A decoder layer that does nothing."""
    return hidden_states


def _hand_on_packed(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    """The same, of a family whose layers hand on a tuple: of states, and perhaps of weights, or of
    what the index of a layer before has chosen (HY-V4, GLM-5)."""
    return hidden_states, kwargs.get("prev_topk_indices")
