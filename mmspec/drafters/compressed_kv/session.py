"""One request's drafting from a view of its own KV."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.model_session import ModelSession
from mmspec.kv import KVView
from mmspec.state import Placement, Preparation

if TYPE_CHECKING:
    from mmspec.drafters.compressed_kv.drafter import BoundCompressedKV


class CompressedKVSession(ModelSession["BoundCompressedKV"]):
    """What was learnt of the request, and where its keys are. The keys themselves are the
    target's: nothing is read twice, nothing has to be rolled back."""

    def __init__(
        self,
        drafter: "BoundCompressedKV",
        view: KVView,
        placement: Placement,
        guide: DraftGuide,
    ) -> None:
        """`placement` is the row's in the target's cache."""
        super().__init__(drafter, guide)
        self.view = view
        self._placement = placement

    def preparation(self, num_tokens: int) -> Preparation | None:
        """Choosing anew what the view shows; that newer tokens join is a part of a proposal."""
        due_bytes = self.view.due_bytes(self._placement.row)
        if not due_bytes:
            return None
        step_bytes = self._drafter.weight_bytes + num_tokens * self.view.token_bytes
        return Preparation(steps=due_bytes / step_bytes, lasts_tokens=self.view.lasts_tokens)

    def prepare(self, tokens: Sequence[int]) -> None:
        self.view.catch_up(self._placement.row)

    def close(self) -> None:
        self._drafter.free(self.view, self._placement.row)

    def catch_up(self, tokens: Sequence[int]) -> Placement | None:
        """Shows what is committed; where a draft is written, and how its positions count. None for
        a text that is too short for a view."""
        row = self._placement.row
        assert self.view.source.length(row) == len(tokens) - 1, "the cache is not the text's"
        if not self.view.catch_up(row):
            return None
        hidden = self.view.num_hidden(row)
        offsets = tuple(offset + hidden for offset in self._placement.position_offsets)
        return Placement(self.view.row_of(row), offsets)
