"""Attention of a head that reads its own states: the training-time test of EAGLE-3.

At place s the head has read the target's features of the tokens up to s (step 0). In step k it
reads, still at place s, the k-th token behind them beside its own state of step k - 1, as it does
when it drafts the (k + 1)-th token of a chain. So a query of step k and place s sees the keys of
step 0 at the places up to s, and of the steps 1 to k those of place s alone: the mask grows by a
diagonal a step (arXiv 2503.01840, figure 6).

    step 2, place 2   step 0: x x x .   step 1: . . x .   step 2: . . x .
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmspec.drafters.eagle import EagleHead
from mmspec.drafters.eagle.module import HeadStates
from mmspec.drafters.heads import TargetEnds, attended
from mmspec.training.heads.batch import Batch

_MOST_KEPT = 2**26  # attention weights of a step that are kept for the gradient


def unrolled(
    head: EagleHead, ends: TargetEnds, batch: Batch, features: Tensor, *, steps: int
) -> Iterator[HeadStates]:
    """What the head says in each step: from `features` (batch, seq, hidden), the target's projected
    ones, and then from its own."""
    places = torch.arange(features.shape[1], device=features.device).unsqueeze(0)
    attend = GrowingDiagonal()
    for step in range(steps):
        embeddings = embedded(ends, batch, 1 + step)
        said = head(embeddings, features, positions=places + step, attend=attend)
        features = said.features
        yield said


def embedded(ends: TargetEnds, batch: Batch, steps: int) -> Tensor:
    """(batch, seq, hidden) float32 of the tokens `steps` further on."""
    return ends.embed(batch.ahead(steps)[0]).to(ends.device, torch.float32)


class GrowingDiagonal:
    """An `Attend` (mmspec.drafters.heads) for one step after the other; of each layer it keeps the
    keys and values of earlier steps, with their gradients."""

    def __init__(self) -> None:
        self._kept: dict[int, list[tuple[Tensor, Tensor]]] = {}  # by layer, a pair a step

    def __call__(
        self, layer: int, query: Tensor, keys: Tensor, values: Tensor, scaling: float
    ) -> Tensor:
        """As `Attend`: of the step behind those that this layer was asked for."""
        group = query.shape[1] // keys.shape[1]
        keys, values = (states.repeat_interleave(group, dim=1) for states in (keys, values))
        kept = self._kept.setdefault(layer, [])
        kept.append((keys, values))
        if len(kept) == 1:
            return attended(query, keys, values, scaling)
        tensors = [tensor for pair in kept for tensor in pair]
        if query.shape[:3].numel() * query.shape[2] <= _MOST_KEPT:
            return _attended(query, scaling, *tensors).transpose(1, 2)
        # Made again for the gradient: of several steps' weights there is no room for all.
        out = checkpoint(_attended, query, scaling, *tensors, use_reentrant=False)
        return out.transpose(1, 2)


def _attended(query: Tensor, scaling: float, *kept: Tensor) -> Tensor:
    """`kept`: keys and values of each step in turn, (batch, heads, seq, head_dim) each."""
    first_keys, first_values, *others = kept
    diagonals = list(zip(others[::2], others[1::2], strict=True))
    seq = query.shape[2]
    hidden = torch.ones(seq, seq, dtype=torch.bool, device=query.device).triu(1)
    causal = (query @ first_keys.transpose(-1, -2) * scaling).masked_fill(hidden, -torch.inf)
    own = [(query * own_keys).sum(-1, keepdim=True) * scaling for own_keys, _ in diagonals]
    weights = torch.cat([causal, *own], dim=-1).float().softmax(-1).to(query.dtype)
    out = weights[..., :seq] @ first_values
    for place, (_, own_values) in enumerate(diagonals):
        out = out + weights[..., seq + place : seq + place + 1] * own_values
    return out
