"""What mmspec attaches to a model for one score call: tree attention and quick linear layers."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.attention import RowNodes, TreeCall
from mmspec.attention.interface import KEYWORD, TAP_KEYWORD, attached
from mmspec.kv import KVCache, QueryTap, WritePlan
from mmspec.target.blocks import Blocks
from mmspec.target.families import layer_reaches
from mmspec.target.linears import Linears
from mmspec.target.masks import MaskRule, on_device
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
        blocks: Blocks | None = None,
    ) -> None:
        """`attention`: "tree" is mmspec's own, "model" the model's with an additive mask, which
        needs the model's own blocks too."""
        self.attention = attention
        self.linears = linears
        self.blocks = blocks
        self._mask_rule = mask_rule
        self._text_config = model.config.get_text_config(decoder=True)
        self._reaches = layer_reaches(model.config, mask_rule)

    @contextmanager
    def scoring(
        self,
        trees: Sequence[TokenTree],
        cache: KVCache,
        plan: WritePlan,
        *,
        written: Sequence[int],
        like: Tensor,
        device: torch.device,
    ) -> Iterator[ForwardInputs]:
        """Within it, one forward scores the trees' nodes behind the first `written` ones, whose
        keys are there already; yields the keywords that it needs for it. `like` has the model's
        dtype, `device` is where its inputs go."""
        with _attached(self.blocks), _attached(self.linears):
            if self.attention == "model":
                lengths = [end - old for end, old in zip(plan.lengths, written, strict=True)]
                mask = self._mask_rule.build(trees, lengths, like.dtype, written=written)
                yield {"attention_mask": on_device(mask, device)}
                return
            plan.is_viewed = False
            with (
                attached(self._text_config),
                self.blocks.attached() if self.blocks else nullcontext(),
            ):
                # A mask of the right form, so that the model makes none of its own.
                mask = like.new_zeros(1, 1, 1, 1, device=device)
                kinds = self._mask_rule.kinds
                yield {
                    "attention_mask": dict.fromkeys(kinds, mask)
                    if self._mask_rule.as_dict
                    else mask,
                    KEYWORD: self._tree_call(trees, cache, plan, written),
                }

    @contextmanager
    def watching(
        self, cache: KVCache, rows: Sequence[int], counts: Sequence[int]
    ) -> Iterator[dict[str, QueryTap]]:
        """Within it, one forward that writes `counts[i]` tokens behind the committed ones of
        `rows[i]` tells the cache's log its queries, where the cache has one; yields the keyword
        that it needs for it."""
        if cache.queries is None:
            yield {}
            return
        with attached(self._text_config):
            yield {TAP_KEYWORD: cache.queries.tap(rows, counts)}

    def _tree_call(
        self, trees: Sequence[TokenTree], cache: KVCache, plan: WritePlan, written: Sequence[int]
    ) -> TreeCall:
        placed = zip(trees, plan.starts, plan.lengths, written, strict=True)
        rows = [
            RowNodes(start, end - old, tree.ancestor_mask[old:], np.array(tree.depths))
            for tree, start, end, old in placed
        ]
        return TreeCall(rows, cache.flat_layers, self._reaches)


def _attached(quick: Blocks | Linears | None) -> AbstractContextManager[None]:
    return nullcontext() if quick is None else quick.attached()
