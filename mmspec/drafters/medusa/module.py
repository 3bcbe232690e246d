"""MedusaHead: residual blocks and a head of their own, for each token to be foreseen."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from mmspec.drafters.medusa.config import MedusaHeadConfig

Speak = Callable[[Tensor], Tensor]  # states (..., hidden) -> logits (..., vocab)


class ResBlock(nn.Module):
    """x + silu(W x + b); the identity at first."""

    def __init__(self, hidden_size: int, *, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size, bias=bias)
        nn.init.zeros_(self.linear.weight)
        if bias:
            nn.init.zeros_(self.linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        """(..., hidden) -> (..., hidden)."""
        return states + nn.functional.silu(self.linear(states))


class MedusaHead(nn.ModuleList):
    """All heads, under the published names: "0.0.linear.weight" is head 0's first block, and
    "0.1.weight" behind its only block its lm_head (arXiv 2401.10774, section 2.1.1)."""

    token_map: Tensor | None  # (mapped,) int64: the tokens that the lm_heads' rows stand for

    def __init__(self, config: MedusaHeadConfig) -> None:
        """`say_as` gives the lm_heads what they begin with in training."""
        size, rows = config.hidden_size, config.num_mapped or config.vocab_size
        assert rows is not None or not config.has_own_heads, "lm_heads of no size"
        super().__init__(
            nn.Sequential(
                *(ResBlock(size, bias=config.has_bias) for _ in range(config.num_layers)),
                *([nn.Linear(size, rows or 0, bias=False)] if config.has_own_heads else []),
            )
            for _ in range(config.num_heads)
        )
        self.config = config
        mapped = config.num_mapped
        self.register_buffer("token_map", None if mapped is None else torch.arange(mapped))

    def forward(self, states: Tensor, speak: Speak | None = None) -> Tensor:
        """The target's `states` (..., hidden) after its final norm -> (heads, ..., vocab) logits:
        those of head k at place i are for the token i + k + 2. `speak`: the target's own lm_head,
        where the heads have none."""
        return self.logits(states, len(self), speak)

    def logits(self, states: Tensor, num_heads: int, speak: Speak | None = None) -> Tensor:
        """As `forward`, of the first `num_heads` alone."""
        found = torch.stack([head(states) for head in list(self)[:num_heads]])
        if not self.config.has_own_heads:
            assert speak is not None, "these heads speak through the target's lm_head"
            return speak(found)
        if self.token_map is None:
            return found
        assert self.config.vocab_size is not None
        logits = found.new_full((*found.shape[:-1], self.config.vocab_size), -torch.inf)
        return logits.index_copy_(-1, self.token_map, found)

    @torch.no_grad()
    def say_as(self, weight: Tensor) -> None:
        """Each lm_head begins as the target's own, whose `weight` is (vocab, hidden)."""
        rows = weight if self.token_map is None else weight[self.token_map.to(weight.device)]
        for head in self:
            cast(nn.Linear, cast(nn.Sequential, head)[-1]).weight.copy_(rows)
