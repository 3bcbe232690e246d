"""BoundHead: a head with what it borrows of its target."""

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from mmspec.attention import Reach
from mmspec.drafters.eagle.module import EagleHead
from mmspec.drafters.forwards import num_weights
from mmspec.drafters.heads import Attend, HeadStates, TargetEnds, as_one, embedded
from mmspec.errors import ConfigError
from mmspec.target import Target
from mmspec.target.linears import quick_linears


class BoundHead:
    """Where the target's head is computed, there it is too. Its weights are its own, but for those
    that are the target's to the bit."""

    def __init__(self, head: EagleHead, target: Target, *, dtype: torch.dtype | None) -> None:
        """`dtype` None: the target's. Raises ConfigError for a head of another target."""
        config = head.config
        self.ends = TargetEnds(target)
        self.vocab_size = target.vocab_size
        _check("hidden_size", config.target_hidden_size, self.ends.hidden_size)
        borrows = not (config.has_embedding and config.has_head)
        if borrows or config.version == 1:
            _check("hidden_size", config.block.hidden_size, self.ends.hidden_size)
        _check("vocab_size", config.block.vocab_size, target.vocab_size)
        self.taps = config.taps(target.last_tap)
        self.device = self.ends.device
        self.dtype = dtype or self.ends.dtype
        # Some folders bring the target's own weights along: those are not kept twice.
        shared: dict[int, object] = {
            id(own): None
            for own, targets in (
                (head.embed_tokens, self.ends.embedding),
                (head.lm_head, self.ends.head),
            )
            if own is not None and _is_same(own.weight, targets)
        }
        first = next(head.parameters())
        if shared or (first.device, first.dtype) != (self.device, self.dtype):
            head = copy.deepcopy(head, shared).to(self.device, self.dtype)
        self._head = head.eval()
        self._linears = quick_linears(self._head)
        self.num_layers = config.block.num_layers
        self.reaches = [Reach(window=config.block.window)] * self.num_layers
        self._target_ids = head.target_ids

    @property
    def modules(self) -> nn.Module:
        """All that it computes by."""
        return as_one(self._head, self.ends.embedding, self.ends.head)

    @property
    def num_weights(self) -> int:
        """Its own alone."""
        return num_weights(self._head)

    def joined(self, hidden: Mapping[int, Tensor]) -> Tensor:
        """The states of each tap, (tokens, target_hidden), side by side in memory of their own."""
        parts = [hidden[tap].to(self.device, non_blocking=True) for tap in self.taps]
        return torch.cat(parts, dim=-1).to(self.dtype)

    @torch.no_grad()
    def project(self, features: Tensor) -> Tensor:
        """Joined states -> (tokens, hidden)."""
        with self._quick():
            return self._head.project(features)

    def states(
        self, ids: Tensor, features: Tensor, positions: Tensor, attend: Attend
    ) -> HeadStates:
        own = self._head.embed_tokens
        embeddings = self.ends.embed(ids) if own is None else embedded(ids, own.weight)
        embeddings = embeddings.to(self.device, self.dtype)
        with self._quick():
            return self._head(embeddings, features, positions=positions, attend=attend)

    def logits(self, read: Tensor) -> Tensor:
        head = self._head.lm_head
        if head is None:
            return self.ends.logits(read)
        with self._quick():
            return head(read)

    def over_target(self, logits: Tensor) -> Tensor:
        if self._target_ids is None or self._head.lm_head is None:
            return logits
        # What it cannot draft is what nobody can choose: noise and warpers stay the target's.
        all_logits = logits.new_full((*logits.shape[:-1], self.vocab_size), -torch.inf)
        return all_logits.index_copy_(-1, self._target_ids, logits)

    def _quick(self) -> AbstractContextManager[None]:
        """Within it, linear layers are computed as a score call's are."""
        return nullcontext() if self._linears is None else self._linears.attached()


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
