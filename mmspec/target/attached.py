"""What mmspec attaches to a model for one score call: tree attention and quick linear layers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.attention import RowNodes, TreeCall
from mmspec.attention.interface import KEYWORD, attached
from mmspec.kv import KVCache, WritePlan
from mmspec.target.families import layer_reaches
from mmspec.target.linears import Linears
from mmspec.target.masks import MaskRule
from mmspec.tree import TokenTree

Attention = Literal["tree", "model"]
ForwardInputs = dict[str, Tensor | dict[str, Tensor] | TreeCall]


class Attachments:
    """Attached in one `with` for one forward, and taken off again after an error too: between two
    forwards the model is as it was found, whoever calls it."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        mask_rule: MaskRule,
        attention: Attention = "model",
        linears: Linears | None = None,
    ) -> None:
        """`attention`: "tree" is mmspec's own, "model" the model's with an additive mask."""
        self.attention = attention
        self.linears = linears
        self._mask_rule = mask_rule
        self._text_config = model.config.get_text_config(decoder=True)
        self._reaches = layer_reaches(model.config, mask_rule)

    @contextmanager
    def scoring(
        self, trees: Sequence[TokenTree], cache: KVCache, plan: WritePlan, *, like: Tensor
    ) -> Iterator[ForwardInputs]:
        """Within it, one forward scores the trees; yields the keywords that it needs for it.
        `like` has the model's dtype and place."""
        with nullcontext() if self.linears is None else self.linears.attached():
            if self.attention == "model":
                mask = self._mask_rule.build(trees, plan.lengths, like.dtype)
                yield {"attention_mask": _on_device(mask, like.device)}
                return
            plan.is_viewed = False
            with attached(self._text_config):
                # A mask of the right form, so that the model makes none of its own.
                mask = like.new_zeros(1, 1, 1, 1)
                kinds = self._mask_rule.kinds
                yield {
                    "attention_mask": dict.fromkeys(kinds, mask)
                    if self._mask_rule.as_dict
                    else mask,
                    KEYWORD: self._tree_call(trees, cache, plan),
                }

    def _tree_call(self, trees: Sequence[TokenTree], cache: KVCache, plan: WritePlan) -> TreeCall:
        rows = [
            RowNodes(start, length, tree.ancestor_mask, np.array(tree.depths, dtype=np.int64))
            for tree, start, length in zip(trees, plan.starts, plan.lengths, strict=True)
        ]
        return TreeCall(rows, cache.flat_layers, self._reaches)


def _on_device(
    mask: Tensor | dict[str, Tensor], device: torch.device
) -> Tensor | dict[str, Tensor]:
    if isinstance(mask, Tensor):
        return mask.to(device)
    return {kind: tensor.to(device) for kind, tensor in mask.items()}
