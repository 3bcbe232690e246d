"""TextTower: from token ids to logits past the modules that only pass on what they get.

Around the decoder blocks a model's own forward makes masks that a score call has already, asks its
configuration, and packs results, several modules deep. A decoder of the Llama kind is embedding,
rotary angles, blocks, norm and head; where all its blocks are quick ones it is run as that.
"""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast
from weakref import ref

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmspec.attention import TreeCall
from mmspec.kv import QueryTap
from mmspec.target.blocks import Angles, Block, Blocks, is_known
from mmspec.target.projections import Product, Projections
from mmspec.target.untouched import are_untouched, is_plain, places_of

_KINDS = frozenset({"LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"})


@dataclass(frozen=True)
class TowerOutput:
    """As much of a model's output as a score call reads."""

    logits: Tensor  # (batch, nodes, vocab)
    hidden_states: None = None


class TextTower:
    """A model's decoder and head, of a score call's keywords. Holds modules, never the model."""

    def __init__(
        self, model: PreTrainedModel, decoder: nn.Module, blocks: list[Block], *, copied: bool
    ) -> None:
        """`copied` allows a copy of a small head."""
        parts: Any = decoder
        head = cast(nn.Linear, model.get_output_embeddings())
        self._embedding, self._rotary = parts.embed_tokens, parts.rotary_emb
        self._blocks = blocks
        self._head = Projections(parts.norm, [head], copied=copied)
        self._model = ref(model)
        around = [m for m in model.modules() if m is not model and decoder in set(m.modules())]
        own = [self._embedding, self._rotary, parts.norm, head]
        self._places = places_of([*around, *own], model)

    def with_products(self, products: Mapping[nn.Module, Product]) -> "TextTower":
        """The same, some of its linear layers computed otherwise."""
        other = copy.copy(self)
        other._blocks = [block.with_products(products) for block in self._blocks]
        other._head = self._head.with_products(products)
        return other

    def without(self, layers: Collection[nn.Module]) -> "TextTower":
        """The same, some of its layers left out."""
        other = copy.copy(self)
        other._blocks = [block for block in self._blocks if block.layer not in layers]
        return other

    def can_run(self) -> bool:
        """Whether nobody has a hand in any module that is run, or passed by."""
        model = self._model()
        return (
            model is not None
            and not torch.is_autocast_enabled("cpu")
            and is_plain(model)
            and are_untouched(self._places)
            and all(block.is_untouched() for block in self._blocks)
        )

    def __call__(
        self,
        *,
        input_ids: Tensor,
        position_ids: Tensor,
        tree_call: TreeCall,
        query_tap: QueryTap | None = None,
        **unused: object,
    ) -> TowerOutput:
        """`input_ids` and `position_ids` (batch, nodes); the rest as a model is given it in a score
        call. Raises ValueError for rotary angles that are not of a whole head."""
        states = self._embedding(input_ids)
        cos, sin = self._rotary(states, position_ids=position_ids)
        if cos.ndim != 3 or cos.shape[-1] != self._blocks[0].head_dim:
            raise ValueError(f"rotary angles of shape {tuple(cos.shape)}")
        angles = Angles.of(cos, sin)
        for block in self._blocks:
            states = block.run(states, angles, tree_call, query_tap)
        return TowerOutput(self._head(states))


def quick_blocks(model: PreTrainedModel, *, copied: bool = True) -> Blocks | None:
    """Blocks, and a tower of them, for a model that gains from them, or None. `copied` allows
    copies of small weights."""
    decoder = model.get_decoder()
    layers = [module for module in decoder.modules() if is_known(module)]
    if not layers:
        return None
    blocks = Blocks(layers, copied=copied)
    if _is_tower(model):
        quick = dict(blocks.each)
        own = [quick[layer] for layer in decoder.layers]
        blocks.tower = TextTower(model, decoder, own, copied=copied)
    return blocks


def _is_tower(model: PreTrainedModel) -> bool:
    decoder: Any = model.get_decoder()
    head: Any = model.get_output_embeddings()
    kinds = (type(model), type(decoder))
    return (
        type(decoder).__name__ in _KINDS
        and all(kind.__module__.startswith("transformers.models.") for kind in kinds)
        and type(head) is nn.Linear
        and head.weight.device.type == "cpu"
        and head.weight.dtype in (torch.float32, torch.float64)
        and len(decoder.layers) == decoder.config.num_hidden_layers
        and all(is_known(layer) for layer in decoder.layers)
    )
