"""TextTower: from token ids to logits past the modules that only pass on what they get.

Around the decoder blocks a model's own forward makes masks that a score call has already, asks its
configuration, and packs results, several modules deep. A decoder of the Llama kind is embedding,
rotary angles, blocks, norm and head; where all its blocks are quick ones it is run as that.
"""

import copy
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.util import find_spec
from operator import attrgetter
from typing import Any, cast
from weakref import ref

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmspec.attention import TreeCall
from mmspec.kv import QueryTap
from mmspec.target.blocks import Block, Blocks, is_known, is_ready, is_rms_norm
from mmspec.target.parts import Added, Kit, Products
from mmspec.target.taps import LateHidden
from mmspec.target.torch_parts import TorchKit
from mmspec.target.untouched import Untouched, is_plain, places_of

logger = logging.getLogger(__name__)
_KINDS = frozenset(
    {
        "LlamaModel",
        "MistralModel",
        "Qwen2Model",
        "Qwen2VLTextModel",
        "Qwen2_5_VLTextModel",
        "Qwen3Model",
        "Qwen3VLTextModel",
    }
)


@dataclass(frozen=True)
class TowerOutput:
    """As much of a model's output as a score call reads."""

    logits: Tensor  # (batch, nodes, vocab)
    hidden_states: LateHidden  # those asked for


class TextTower:
    """A model's decoder and head, of a score call's keywords. Holds modules, never the model."""

    def __init__(
        self, model: PreTrainedModel, decoder: nn.Module, blocks: list[Block], kit: Kit
    ) -> None:
        parts: Any = decoder
        head = cast(nn.Linear, model.get_output_embeddings())
        self._embedding, self._rotary = parts.embed_tokens, parts.rotary_emb
        self._blocks = blocks
        self.kit = kit
        self._head = kit.head(parts.norm, head)
        self._linears = {
            module
            for parent in (*(block.layer for block in blocks), head)
            for module in parent.modules()
            if isinstance(module, nn.Linear)
        }
        self._model = ref(model)
        around = [m for m in model.modules() if m is not model and decoder in set(m.modules())]
        own = [self._embedding, self._rotary, parts.norm, head, *parts.layers.modules()]
        self._untouched = Untouched(places_of([*around, *own], model))
        self._layers = list(parts.layers)

    def with_products(self, products: Products) -> "TextTower":
        """The same, some of its linear layers computed otherwise."""
        other = copy.copy(self)
        other._blocks = [block.with_products(products) for block in self._blocks]
        other._head = self._head.with_products(products)
        other._linears = self._linears - products.keys()
        return other

    def without(self, layers: Collection[nn.Module]) -> "TextTower":
        """The same, some of its layers left out."""
        other = copy.copy(self)
        other._blocks = [block for block in self._blocks if block.layer not in layers]
        return other

    @property
    def calls_linears(self) -> bool:
        """Whether any linear layer is computed by its own module."""
        return bool(self._linears)

    def can_run(self) -> bool:
        """Whether nobody has a hand in any module that is run, or passed by."""
        model = self._model()
        return (
            model is not None
            and not torch.is_autocast_enabled(self.kit.device_type)
            and is_plain(model)
            and self._untouched.holds
            and not any(map(_is_trained, self._layers))
        )

    def __call__(
        self,
        *,
        input_ids: Tensor,
        position_ids: Tensor,
        tree_call: TreeCall,
        query_tap: QueryTap | None = None,
        output_hidden_states: bool | list[int] = False,
        **unused: object,
    ) -> TowerOutput:
        """`input_ids` and `position_ids` (batch, nodes), or (planes, batch, nodes) under M-RoPE;
        the rest as a model is given it in a score call. Raises ValueError for rotary angles that
        are not of a whole head."""
        taps = set(_taps(output_hidden_states, len(self._blocks)))
        hidden: dict[int, Tensor | Callable[[], Tensor]] = {}
        states: Tensor = self._embedding(input_ids)
        added: Added | None = None
        cos, sin = self._rotary(states, position_ids=position_ids)
        if cos.ndim != 3 or cos.shape[-1] != self._blocks[0].head_dim:
            raise ValueError(f"rotary angles of shape {tuple(cos.shape)}")
        angles = self.kit.angles(cos, sin)
        for index, block in enumerate(self._blocks):
            if index in taps:
                states, added = states if added is None else states + added, None
                hidden[index] = states
            states, added = block.run(states, added, angles, tree_call, query_tap)
        last = len(self._blocks)
        made = self._head(states, added)
        if last in taps:
            hidden[last] = made.normed
        return TowerOutput(made.logits, LateHidden(hidden))


_is_trained = attrgetter("training")


def _taps(asked: bool | list[int], last: int) -> list[int]:
    """What a forward's `output_hidden_states` asks for."""
    if isinstance(asked, bool):
        return list(range(last + 1)) if asked else []
    return asked


def quick_blocks(
    model: PreTrainedModel,
    *,
    copied: bool = True,
    begins_early: bool = True,
    kit: Kit | None = None,
) -> Blocks | None:
    """Blocks, and a tower of them, for a model that gains from them, or None. `copied` allows
    copies of small weights on a CPU, `begins_early` on a GPU a trial of kernels that begin before
    the one ahead has ended; `kit` is the device's own unless it is given."""
    decoder = model.get_decoder()
    kit = kit or _kit_for(model, copied=copied, begins_early=begins_early)
    if kit is None:
        return None
    layers = [module for module in decoder.modules() if is_known(module, kit)]
    if not layers:
        return None
    blocks = Blocks(layers, kit)
    if _is_tower(model, kit):
        quick = dict(blocks.each)
        own = [quick[layer] for layer in decoder.layers]
        blocks.tower = TextTower(model, decoder, own, kit)
    kit.settle()
    return blocks


def _kit_for(model: PreTrainedModel, *, copied: bool, begins_early: bool) -> Kit | None:
    device = model.get_input_embeddings().weight.device
    if device.type == "cpu":
        return TorchKit(copied=copied)
    if device.type != "cuda" or find_spec("triton") is None:
        return None
    try:
        from mmspec.target.triton_kit import kit_on
    except Exception as error:  # a Triton with other names, or one that does not load
        logger.warning("%s: its blocks are its own forward's (%s)", type(model).__name__, error)
        return None
    return kit_on(model, device, begins_early=begins_early)


def _is_tower(model: PreTrainedModel, kit: Kit) -> bool:
    decoder: Any = model.get_decoder()
    head: Any = model.get_output_embeddings()
    kinds = (type(model), type(decoder))
    return (
        type(decoder).__name__ in _KINDS
        and all(kind.__module__.startswith("transformers.models.") for kind in kinds)
        and type(head) is nn.Linear
        and is_ready(head, kit, head.weight.dtype)
        and is_rms_norm(decoder.norm, head.weight)
        and type(decoder.embed_tokens) is nn.Embedding
        and decoder.embed_tokens.weight.dtype == head.weight.dtype
        and len(decoder.layers) == decoder.config.num_hidden_layers
        and all(is_known(layer, kit) for layer in decoder.layers)
    )
