"""BoundHead: a head with what it borrows of its target; FeatureHead, what another one may be."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmspec.drafters.eagle.module import EagleHead, HeadStates
from mmspec.drafters.forwards import num_weights
from mmspec.drafters.heads import Attend, BorrowingHead, CachedAttend, TargetEnds, placed
from mmspec.drafters.heads.vocabulary import over_target
from mmspec.errors import ConfigError
from mmspec.target import Target


class TappingHead(BorrowingHead):
    """One that reads the target's hidden states."""

    taps: Sequence[int]  # states of the target that are joined to one feature

    @property
    def num_weights(self) -> int:
        """Its own alone."""
        return num_weights(self._module)

    def joined(self, hidden: Mapping[int, Tensor]) -> Tensor:
        """The states of each tap, (tokens, target_hidden), side by side in memory of their own."""
        parts = [hidden[tap].to(self.device) for tap in self.taps]
        return torch.cat(parts, dim=-1).to(self.dtype)


class FeatureHead(TappingHead, ABC):
    """One that reads a feature beside each token: what the target has said of the token before it,
    or the head itself where the target has not spoken yet."""

    index_layers: Sequence[int] = ()  # its own, that choose which tokens they see
    planes = 1  # of positions, in which it counts as a target with M-RoPE does

    def project(self, features: Tensor) -> Tensor:
        """Joined states -> (tokens, hidden), as `states` reads them."""
        return features

    @abstractmethod
    def states(
        self, ids: Tensor, features: Tensor, positions: Tensor, attend: CachedAttend
    ) -> HeadStates:
        """`ids` (batch, seq) int64; `features` (batch, seq, hidden), and their `positions` (batch,
        seq) int64, or (planes, batch, seq)."""

    def over_target(self, logits: Tensor) -> Tensor:
        """(nodes, own vocab) -> (nodes, vocab) over the target's vocabulary, -inf for what is never
        drafted."""
        return logits


class BoundHead(FeatureHead):
    """Its weights are its own, but for those that are the target's to the bit."""

    def __init__(self, head: EagleHead, target: Target, *, dtype: torch.dtype | None) -> None:
        """`dtype` None: the target's. Raises ConfigError for a head of another target."""
        config, ends = head.config, TargetEnds(target)
        _check("hidden_size", config.target_hidden_size, ends.hidden_size)
        borrows = not (config.has_embedding and config.has_head)
        if borrows or config.version == 1:
            _check("hidden_size", config.block.hidden_size, ends.hidden_size)
        _check("vocab_size", config.block.vocab_size, target.vocab_size)
        # Some folders bring the target's own weights along: those are not kept twice.
        shared = {
            id(own): None
            for own, targets in (
                (head.embed_tokens, ends.embedding),
                (head.lm_head, ends.head),
            )
            if own is not None and _is_same(own.weight, targets)
        }
        self._head = head = placed(head, ends, dtype or ends.dtype, shared=shared).eval()
        super().__init__(
            head, config.block.reaches, ends, embedding=head.embed_tokens, lm_head=head.lm_head
        )
        self.taps = config.taps(target.last_tap)
        self.planes = max(len(config.block.sections), 1)
        self._vocab_size = target.vocab_size
        self._target_ids = None if head.lm_head is None else head.target_ids

    @torch.no_grad()
    def project(self, features: Tensor) -> Tensor:
        with self.quick():
            return self._head.project(features)

    def states(
        self, ids: Tensor, features: Tensor, positions: Tensor, attend: Attend
    ) -> HeadStates:
        with self.quick():
            return self._head(self.embed(ids), features, positions=positions, attend=attend)

    def over_target(self, logits: Tensor) -> Tensor:
        return over_target(logits, self._target_ids, self._vocab_size)


def _check(name: str, got: int, expected: int) -> None:
    if got != expected:
        raise ConfigError(
            f"drafter.eagle: the head was made for a target of {name} {got}, this one has "
            f"{expected}; take a head that was trained for this model"
        )


def _is_same(own: Tensor, module: nn.Module) -> bool:
    """Whether a module's weight is what `own` would be beside it."""
    weight = module.weight
    if not isinstance(weight, Tensor) or weight.is_meta or weight.shape != own.shape:
        return False
    return weight.is_floating_point() and torch.equal(own.to(weight), weight)
