"""BorrowingHead: a trained head with what it borrows of its target."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from mmspec.attention import Reach
from mmspec.drafters.heads.ends import TargetEnds, embedded
from mmspec.target.linears import quick_linears

M = TypeVar("M", bound=nn.Module)


class BorrowingHead:
    """Where the target's lm_head is computed, there it is too. It reads and speaks by ends of its
    own, or by the target's."""

    def __init__(
        self,
        module: nn.Module,
        reaches: Sequence[Reach],
        ends: TargetEnds,
        *,
        embedding: nn.Module | None,
        lm_head: nn.Module | None,
    ) -> None:
        """`module` as `placed` there, whose layers look back by `reaches`, its own `embedding` and
        `lm_head` in it; None: the target's."""
        self.device = ends.device
        self.dtype = next(module.parameters()).dtype
        self.num_layers = len(reaches)
        self.reaches = reaches
        self._module = module
        self._ends = ends
        self._embedding = embedding
        self._lm_head = lm_head
        self._linears = quick_linears(module)

    @property
    def modules(self) -> nn.Module:
        """All that it computes by."""
        return as_one(self._module, self._ends.embedding, self._ends.head)

    def quick(self) -> AbstractContextManager[None]:
        """Within it, its linear layers are computed as a score call's are."""
        return nullcontext() if self._linears is None else self._linears.attached()

    def embed(self, ids: Tensor) -> Tensor:
        """(batch, seq) int64 -> (batch, seq, hidden) where the head lies."""
        if self._embedding is not None:
            weight = self._embedding.weight
            assert isinstance(weight, Tensor)
            return embedded(ids, weight)
        return self._ends.embed(ids).to(self.device, self.dtype)

    def logits(self, states: Tensor) -> Tensor:
        """(..., hidden) -> (..., vocab): its own where it has an lm_head, else the target's."""
        if self._lm_head is None:
            return self._ends.logits(states)
        with self.quick():
            return self._lm_head(states)


def placed(
    module: M, ends: TargetEnds, dtype: torch.dtype, *, shared: Mapping[int, object] | None = None
) -> M:
    """The module, or a copy of it, in `dtype` where the target's lm_head lies. `shared`: parts of
    it, by id, and what stands in their place."""
    there = (ends.device, dtype)
    if not shared and all((w.device, w.dtype) == there for w in module.parameters()):
        return module
    return copy.deepcopy(module, dict(shared or {})).to(*there)


def as_one(*modules: nn.Module) -> nn.ModuleList:
    """Modules as one, to be watched for changes; they stay as they are, in training or not."""
    joined = nn.ModuleList(modules)
    joined.training = False
    return joined
