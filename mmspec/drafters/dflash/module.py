"""DFlashHead: the network, under the published parameter names."""

from typing import cast

import torch
from torch import Tensor, nn

from mmspec.drafters.dflash.config import DFlashConfig
from mmspec.drafters.heads import Attend, DecoderBlock, RMSNorm, Rotary
from mmspec.kv import KVCache


class DFlashHead(nn.Module):
    """Of the context each layer has keys and values alone, all of them of the same features; the
    layers compute a block of tokens that sees it. The token at a place of the block is what is said
    there, not of the next one."""

    d2t: Tensor  # of an lm_head of its own: d2t[i] + i is the target's id of its token i

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__()
        self.config = config
        block = config.block
        hidden, eps = block.hidden_size, block.rms_norm_eps
        self.fc = nn.Linear(len(config.layers) * hidden, hidden, bias=False)
        self.hidden_norm = RMSNorm(hidden, eps)
        self.layers = nn.ModuleList(DecoderBlock(block, layer=n) for n in range(block.num_layers))
        self.norm = RMSNorm(hidden, eps)
        self.lm_head: nn.Linear | None = None
        if config.draft_vocab_size is not None:
            self.lm_head = nn.Linear(hidden, config.draft_vocab_size, bias=False)
            self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.long))
        self._rotary = Rotary(block)

    def remember(self, joined: Tensor, positions: Tensor, cache: KVCache) -> None:
        """Writes the keys and values of the context: the target's states of all its layers side by
        side, (batch, seq, layers * hidden) at `positions` (batch, seq); within `cache.writing`."""
        features = self.hidden_norm(self.fc(joined))
        rotation = self._rotary(positions, features.dtype)
        for layer, flat in zip(self.layers, cache.flat_layers, strict=True):
            flat.update(*cast(DecoderBlock, layer).self_attn.keys_values(features, rotation))

    def forward(self, embedded: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """A block (batch, seq, hidden) at `positions` (batch, seq) behind the context -> the same,
        normed."""
        states, rotation = embedded, self._rotary(positions, embedded.dtype)
        for layer in self.layers:
            states = layer(states, rotation, attend)
        return self.norm(states)

    @property
    def num_read_weights(self) -> int:
        """Numbers that reading the context takes."""
        parts: list[nn.Module] = [self.fc]
        for layer in self.layers:
            own = cast(DecoderBlock, layer).self_attn
            parts += [own.k_proj, own.v_proj]
        return sum(weight.numel() for part in parts for weight in part.parameters())
