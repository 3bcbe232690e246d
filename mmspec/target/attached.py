"""What mmspec attaches to a model for one score call: tree attention and quick linear layers."""

import copy
from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Literal, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.attention import CallPaths, ChunkCall, TreeCall
from mmspec.attention.interface import KEYWORD, TAP_KEYWORD, attached
from mmspec.errors import ModelError
from mmspec.kv import KVCache, Levels, LevelSlots, QueryTap, WritePlan
from mmspec.target.biases import SlotBiases
from mmspec.target.blocks import Blocks
from mmspec.target.families import layer_reaches
from mmspec.target.linears import Linears
from mmspec.target.masks import MaskRule, Masks, nodes_of, on_device
from mmspec.target.mixers import Mixers
from mmspec.target.tower import TextTower
from mmspec.tree import TokenTree

Attention = Literal["tree", "model"]
ForwardInputs = dict[str, Masks | TreeCall | ChunkCall]
_READING = ("cpu", "cuda")  # where a chunk attends by more than products


class Attachment(Protocol):
    """Something that makes the model compute otherwise within a `with`, and leaves no trace."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes beside the model."""

    @property
    def state(self) -> Hashable:
        """Differs once it makes the model compute otherwise than before, but for new weights."""

    def attached(self) -> AbstractContextManager[None]: ...

    def within(self, tower: TextTower) -> TextTower | None:
        """A tower that computes what the model does while this is attached; None where it has to
        be attached."""


class Attachments:
    """Attached in one `with` for one forward, and taken off again after an error too: between two
    forwards the model is as it was found, whoever calls it."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        mask_rule: MaskRule,
        attention: Attention = "model",
        backend: str = "auto",
        linears: Linears | None = None,
        blocks: Blocks | None = None,
        is_bitwise: bool = False,
    ) -> None:
        """`attention`: "tree" is mmspec's own, "model" the model's with an additive mask, which
        needs the model's own blocks too; `backend`: which of mmspec's is asked first. `is_bitwise`:
        with attention whose bits don't depend on where a text was cut."""
        self.attention = attention
        self.backend = backend
        self.linears = linears
        self.blocks = blocks
        self.others: tuple[Attachment, ...] = ()
        self.mixers: Mixers | None = None  # of a model with running states
        self._biases = SlotBiases.of(model)
        self._is_bitwise = is_bitwise
        self._mask_rule = mask_rule
        self._text_config = model.config.get_text_config(decoder=True)
        self._reaches = layer_reaches(model.config, mask_rule)
        self._num_attending = 0  # layers, in the newest forward

    def joined(self, others: Sequence[Attachment]) -> "Attachments":
        """The same, but not bitwise, with more attached behind the `others` that there are. These
        come first: what they take, `blocks` and `linears` leave to them."""
        joined = copy.copy(self)
        joined.others, joined._num_attending = (*self.others, *others), 0
        joined._is_bitwise = False
        return joined

    @property
    def num_bytes(self) -> int:
        """Memory of what is attached beyond the quick linear layers: a draft's copy of weights."""
        return sum(attachment.num_bytes for attachment in self.others)

    @property
    def state(self) -> Hashable:
        """Differs once a forward computes otherwise by what is attached."""
        return self.attention, tuple((other, other.state) for other in self.others)

    @contextmanager
    def scoring(
        self,
        call: TreeCall,
        cache: KVCache,
        plan: WritePlan,
        *,
        like: Tensor,
        device: torch.device,
        levels: Levels | LevelSlots | None = None,
    ) -> Iterator[tuple[TextTower | None, ForwardInputs]]:
        """Within it, one forward scores the call's nodes; yields who runs it (None: the model) and
        the keywords that it needs for it. `like` has the model's dtype, `device` is where its
        inputs go; `levels`: what mixers are told."""
        with ExitStack() as stack:
            tower = self._tower()
            if tower is None:
                for attachment in self.others:
                    stack.enter_context(attachment.attached())
                if self.blocks is not None and self.attention == "tree":
                    stack.enter_context(self.blocks.attached())
            if self.linears is not None and (tower is None or tower.calls_linears):
                stack.enter_context(self.linears.attached())
            if self.mixers is not None and cache.states is not None:
                assert levels is not None, "mixers score by levels"
                stack.enter_context(self.mixers.attached(cache, levels))
            if self.attention == "model":
                mask = on_device(self._mask_rule.build(call.rows, like.dtype), device)
                if self._biases is not None:
                    mask = self._biases.by_depth(mask, call.rows)
                yield None, stack.enter_context(self.masked(mask))
                return
            plan.is_viewed = False
            if tower is not None:
                yield tower, {KEYWORD: call}
            else:
                stack.enter_context(attached(self._text_config))
                yield None, self._called(call, like.new_zeros(1, 1, 1, 1, device=device))
            self._check(call)

    @contextmanager
    def reading(
        self, cache: KVCache, plan: WritePlan, *, like: Tensor, device: torch.device
    ) -> Iterator[ForwardInputs | None]:
        """Within it, one forward reads a prompt's tokens behind the committed ones of its row, each
        of which sees all before it; yields the keywords that it needs for it, or None: it is to
        attend by a mask."""
        if self.attention == "model" or device.type not in _READING or not plan.lengths[0]:
            yield None
            return
        plan.is_viewed = False
        place = (plan.starts[0], plan.lengths[0], plan.counts[0])
        with attached(self._text_config):
            call = ChunkCall(*place, cache.flat_layers, self._reaches)
            yield self._called(call, like.new_zeros(1, 1, 1, 1, device=device))
            self._check(call)

    def _check(self, call: TreeCall | ChunkCall) -> None:
        """Raises ModelError where fewer layers attended as the call tells them than in forwards
        before: the others saw no mask at all."""
        count = call.num_attended
        if not self.others and count < self._num_attending:
            raise ModelError(
                f"of the model's {self._num_attending} layers {count} attend through mmspec: were "
                "the others replaced by layers with a config of their own? Load the model again "
                "(mmspec.load)"
            )
        self._num_attending = count

    @contextmanager
    def masked(self, mask: Masks) -> Iterator[ForwardInputs]:
        """Within it, one forward attends by the mask; yields the keyword that it needs for it."""
        if self._biases is None:
            yield {"attention_mask": mask}
            return
        with self._biases.told(mask) as slots:
            yield {"attention_mask": slots}

    def _called(self, call: TreeCall | ChunkCall, mask: Tensor) -> ForwardInputs:
        """With a mask of the right form, so that the model makes none of its own."""
        masks = self._mask_rule.given({kind: mask for kind in self._mask_rule.kinds})
        return {"attention_mask": masks, KEYWORD: call}

    @contextmanager
    def tapped(self, tap: QueryTap | None) -> Iterator[dict[str, QueryTap]]:
        """Within it, one forward tells the tap its queries; yields the keyword for it."""
        if tap is None:
            yield {}
            return
        with attached(self._text_config):
            yield {TAP_KEYWORD: tap}

    def _tower(self) -> TextTower | None:
        """What runs the model's decoder without the modules around it, where that can be."""
        tower = None if self.blocks is None or self.attention == "model" else self.blocks.tower
        if tower is None or not tower.can_run():
            return None
        for attachment in self.others:
            tower = attachment.within(tower)
            if tower is None:
                return None
        return tower

    def tree_call(
        self,
        trees: Sequence[TokenTree],
        cache: KVCache,
        plan: WritePlan,
        written: Sequence[int],
    ) -> TreeCall:
        """What attention is told of the trees' nodes behind the first `written` ones, whose keys
        are there already."""
        rows = nodes_of(trees, plan, written)
        paths = CallPaths() if self._is_bitwise else None
        return TreeCall(rows, cache.flat_layers, self._reaches, backend=self.backend, paths=paths)
