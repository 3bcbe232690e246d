"""What mmspec attaches to a model for one score call: tree attention and quick linear layers."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.attention import CallPaths, RowNodes, TreeCall
from mmspec.attention.interface import KEYWORD, TAP_KEYWORD, attached
from mmspec.kv import KVCache, QueryTap, WritePlan
from mmspec.target.blocks import Blocks
from mmspec.target.families import layer_reaches
from mmspec.target.linears import Linears
from mmspec.target.masks import MaskRule, on_device
from mmspec.target.tower import TextTower
from mmspec.tree import TokenTree

Attention = Literal["tree", "model"]
ForwardInputs = dict[str, Tensor | dict[str, Tensor] | TreeCall]


class Attachment(Protocol):
    """Something that makes the model compute otherwise within a `with`, and leaves no trace."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes beside the model."""

    def attached(self) -> AbstractContextManager[None]: ...


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
        others: Sequence[Attachment] = (),
        is_bitwise: bool = False,
    ) -> None:
        """`attention`: "tree" is mmspec's own, "model" the model's with an additive mask, which
        needs the model's own blocks too. `others` come first: what they take, `blocks` and
        `linears` leave to them. `is_bitwise`: with attention whose bits don't depend on where a
        text was cut."""
        self.attention = attention
        self.linears = linears
        self.blocks = blocks
        self.others = tuple(others)
        self._is_bitwise = is_bitwise
        self._mask_rule = mask_rule
        self._text_config = model.config.get_text_config(decoder=True)
        self._reaches = layer_reaches(model.config, mask_rule)

    @property
    def num_bytes(self) -> int:
        """Memory of what is attached beyond the quick linear layers: a draft's copy of weights."""
        return sum(attachment.num_bytes for attachment in self.others)

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
        wants_hidden: bool = False,
        padding: Sequence[int] = (),
    ) -> Iterator[tuple[TextTower | None, ForwardInputs]]:
        """Within it, one forward scores the trees' nodes behind the first `written` ones, whose
        keys are there already; yields who runs it (None: the model) and the keywords that it needs
        for it. `like` has the model's dtype, `device` is where its inputs go; `wants_hidden`: with
        hidden states; the last `padding[i]` nodes of tree i are read by nobody."""
        with ExitStack() as stack:
            for attachment in self.others:
                stack.enter_context(attachment.attached())
            tower = None
            if self.blocks is not None and self.attention == "tree":
                tower = self.blocks.tower
                if tower is None or wants_hidden or not tower.can_run():
                    tower = None
                    stack.enter_context(self.blocks.attached())
            if self.linears is not None:
                stack.enter_context(self.linears.attached())
            if self.attention == "model":
                lengths = [end - old for end, old in zip(plan.lengths, written, strict=True)]
                mask = self._mask_rule.build(trees, lengths, like.dtype, written=written)
                yield None, {"attention_mask": on_device(mask, device)}
                return
            plan.is_viewed = False
            call = self._tree_call(trees, cache, plan, written, padding)
            if tower is not None:
                yield tower, {KEYWORD: call}
                return
            stack.enter_context(attached(self._text_config))
            # A mask of the right form, so that the model makes none of its own.
            mask = like.new_zeros(1, 1, 1, 1, device=device)
            masks: dict[str, Tensor] = {kind: mask for kind in self._mask_rule.kinds}
            yield (
                None,
                {"attention_mask": masks if self._mask_rule.as_dict else mask, KEYWORD: call},
            )

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
        self,
        trees: Sequence[TokenTree],
        cache: KVCache,
        plan: WritePlan,
        written: Sequence[int],
        padding: Sequence[int],
    ) -> TreeCall:
        unread = padding or [0] * len(trees)
        placed = zip(trees, plan.starts, plan.lengths, written, unread, strict=True)
        rows = [
            RowNodes(start, end - old, tree.ancestor_mask[old:], np.array(tree.depths), last)
            for tree, start, end, old, last in placed
        ]
        paths = CallPaths.of(rows) if self._is_bitwise else None
        return TreeCall(rows, cache.flat_layers, self._reaches, paths)
