"""HeadForTarget: a GliDe head with what it borrows of its target."""

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from mmspec.attention import Reach
from mmspec.drafters.glide.glimpse import Glimpse
from mmspec.drafters.glide.module import GlideHead
from mmspec.drafters.heads import Attend, TargetEnds, as_one, embedded
from mmspec.target.linears import quick_linears


class HeadForTarget:
    """A head with all that it needs: its own ends, or the target's."""

    def __init__(self, head: GlideHead, ends: TargetEnds, *, num_layers: int) -> None:
        """`num_layers` of the target."""
        self.head = head
        self.device = ends.device
        self.vocab_size = ends.vocab_size
        config = head.config
        self.target_layers = [layer % num_layers for layer in config.target_layers]
        self.reaches = [Reach(window=config.block.window)] * config.block.num_layers
        self._ends = ends
        self._linears = quick_linears(head)

    @property
    def modules(self) -> nn.Module:
        """All that it computes by."""
        return as_one(self.head, self._ends.embedding, self._ends.head)

    def quick(self) -> AbstractContextManager[None]:
        """Within it, its linear layers are computed as a score call's are."""
        return nullcontext() if self._linears is None else self._linears.attached()

    def states(
        self, ids: Tensor, places: Tensor, attend: Attend, positions: Tensor, glimpse: Glimpse
    ) -> Tensor:
        """`ids` and `places` (batch, nodes) int64, `positions` (planes, batch, nodes) what the
        target counts there -> (batch, nodes, hidden), normed."""
        with self.quick():
            return self.head.model(self.embed(ids), places, attend, positions, glimpse)

    def embed(self, ids: Tensor) -> Tensor:
        """(batch, seq) int64 -> (batch, seq, hidden) where the head lies."""
        if not self.head.config.owns_ends:
            return self._ends.embed(ids).to(self.device, self._ends.dtype)
        return embedded(ids, self.head.model.embed_tokens.weight)

    def logits(self, states: Tensor) -> Tensor:
        """(..., hidden) -> (..., vocab) over the target's vocabulary."""
        if self.head.config.owns_ends:
            with self.quick():
                return self.head.lm_head(states)[..., : self.vocab_size]
        return self._ends.logits(states)
