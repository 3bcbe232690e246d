"""HeadForTarget: a GliDe head with what it borrows of its target."""

from torch import Tensor

from mmspec.drafters.glide.glimpse import Glimpse
from mmspec.drafters.glide.module import GlideHead
from mmspec.drafters.heads import Attend, BorrowingHead, TargetEnds


class HeadForTarget(BorrowingHead):
    """And which of the target's layers it looks at."""

    def __init__(self, head: GlideHead, ends: TargetEnds, *, num_layers: int) -> None:
        """`num_layers` of the target."""
        config = head.config
        super().__init__(
            head,
            config.block.reaches,
            ends,
            embedding=head.model.embed_tokens if config.owns_ends else None,
            lm_head=head.lm_head if config.owns_ends else None,
        )
        self.head = head
        self.target_layers = [layer % num_layers for layer in config.target_layers]

    def states(
        self, ids: Tensor, places: Tensor, attend: Attend, positions: Tensor, glimpse: Glimpse
    ) -> Tensor:
        """`ids` and `places` (batch, nodes) int64, `positions` (planes, batch, nodes) what the
        target counts there -> (batch, nodes, hidden), normed."""
        with self.quick():
            return self.head.model(self.embed(ids), places, attend, positions, glimpse)
