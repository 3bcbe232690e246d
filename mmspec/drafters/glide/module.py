"""GlideHead: a decoder that glimpses at the target's KV, under the published parameter names."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmspec.drafters.glide.config import GlideHeadConfig
from mmspec.drafters.glide.glimpse import Glimpse, WholeGlimpse, block_borders
from mmspec.drafters.heads import (
    Attend,
    GatedMLP,
    RMSNorm,
    Rotary,
    Rotation,
    SelfAttention,
    WholeSequences,
)


class CrossAttention(nn.Module):
    """Queries of the head's over the target's keys and values, which are taken as they lie: there
    is nothing to project but the query and what comes of it."""

    def __init__(self, config: GlideHeadConfig) -> None:
        super().__init__()
        heads, hidden = config.num_target_heads, config.block.hidden_size
        self.q_proj = nn.Linear(hidden, heads * config.target_head_dim, bias=False)
        self.o_proj = nn.Linear(heads * config.target_value_dim, hidden, bias=False)
        self._rope = config.rope
        self._head_dim = config.target_head_dim
        # No buffers: `.to(dtype)` must not round them.
        self._told: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def forward(self, states: Tensor, positions: Tensor, glimpse: Glimpse, *, layer: int) -> Tensor:
        """`states` (batch, seq, hidden) at `positions` (planes, batch, seq) -> (batch, seq,
        hidden)."""
        query = self.q_proj(states).unflatten(-1, (-1, self._head_dim)).transpose(1, 2)
        told = self._told.get(states.device)
        if told is None:
            told = self._told[states.device] = self._rope.tensors(states.device)
        query = self._rope.rotated(query, positions, told)
        out = glimpse(layer, query, self._head_dim**-0.5)
        return self.o_proj(out.flatten(-2).to(states.dtype))


class GlideBlock(nn.Module):
    """Self-attention, cross-attention and MLP, each added to its input (arXiv 2402.02082 section
    3.1). Published heads have no norm before the cross-attention."""

    def __init__(self, config: GlideHeadConfig, *, layer: int) -> None:
        """`layer`: its number in the head's own cache."""
        super().__init__()
        block = config.block
        self._layer = layer
        self.input_layernorm = RMSNorm(block.hidden_size, block.rms_norm_eps)
        self.self_attn = SelfAttention(block)
        self.cross_layernorm = (
            RMSNorm(block.hidden_size, block.rms_norm_eps)
            if config.has_cross_norm
            else nn.Identity()
        )
        self.cross_attn = CrossAttention(config)
        self.post_attention_layernorm = RMSNorm(block.hidden_size, block.rms_norm_eps)
        self.mlp = GatedMLP(block)

    def forward(
        self,
        states: Tensor,
        rotation: Rotation,
        attend: Attend,
        positions: Tensor,
        glimpse: Glimpse,
    ) -> Tensor:
        """(batch, seq, hidden) -> the same."""
        layer = self._layer
        read = self.input_layernorm(states)
        states = states + self.self_attn(read, rotation, attend, layer=layer)
        read = self.cross_layernorm(states)
        states = states + self.cross_attn(read, positions, glimpse, layer=layer)
        return states + self.mlp(self.post_attention_layernorm(states))

    def keys_values(self, states: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """What later tokens meet of these."""
        return self.self_attn.keys_values(self.input_layernorm(states), rotation)


class GlideDecoder(nn.Module):
    """The layers between the two ends."""

    def __init__(self, config: GlideHeadConfig) -> None:
        super().__init__()
        block = config.block
        if config.owns_ends:
            self.embed_tokens = nn.Embedding(block.vocab_size, block.hidden_size)
        self.layers = nn.ModuleList(
            [GlideBlock(config, layer=index) for index in range(block.num_layers)]
        )
        self.norm = RMSNorm(block.hidden_size, block.rms_norm_eps)
        self._rotary = Rotary(block)

    def forward(
        self,
        embedded: Tensor,
        places: Tensor,
        attend: Attend,
        positions: Tensor,
        glimpse: Glimpse,
    ) -> Tensor:
        """(batch, seq, hidden) -> the same, normed; `places` (batch, seq) are where the tokens
        stand in the text, `positions` (planes, batch, seq) what the target counts there."""
        states, rotation = embedded, self._rotary(places, embedded.dtype)
        for layer in self.layers:
            states = layer(states, rotation, attend, positions, glimpse)
        return self.norm(states)

    def remember(
        self,
        embedded: Tensor,
        places: Tensor,
        attend: Attend,
        positions: Tensor,
        glimpse: Glimpse,
    ) -> tuple[Tensor, Tensor]:
        """Computes of tokens that nothing is asked of what later ones meet: all of the lower
        layers, by `attend`, and the last one's keys and values, which it returns."""
        states, rotation = embedded, self._rotary(places, embedded.dtype)
        *lower, last = self.blocks
        for layer in lower:
            states = layer(states, rotation, attend, positions, glimpse)
        return last.keys_values(states, rotation)

    @property
    def blocks(self) -> list[GlideBlock]:
        return [layer for layer in self.layers if isinstance(layer, GlideBlock)]


class GlideHead(nn.Module):
    """What is trained and stored. Where it does not own them, its embedding and lm_head are the
    target's."""

    def __init__(self, config: GlideHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.model = GlideDecoder(config)
        if config.owns_ends:
            block = config.block
            self.lm_head = nn.Linear(block.hidden_size, block.vocab_size, bias=False)

    def forward(
        self,
        embedded: Tensor,
        keys: Tensor | Sequence[Tensor],
        values: Tensor | Sequence[Tensor],
        *,
        lengths: Tensor | None = None,
        offsets: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Whole sequences, for training: `embedded` (batch, seq, hidden) -> (batch, seq, hidden)
        that an lm_head says the next token of.

        `keys` (rotated) and `values` (batch, kv_heads, seq, head_dim) of the target's layer, or one
        such pair for each of the head's layers (`config.target_layers`). `lengths` (batch, blocks)
        int64 on the same device: the speculations that are simulated, see `block_borders`; None:
        blocks of `config.block_size`. `offsets` (batch, planes) int64: position in the target -
        index in the text, of what is said behind the prompt (`Placement.position_offsets`); None:
        0. Tokens of the prompt are counted so, too, though behind an image M-RoPE counts
        otherwise: what they see is nobody's but a second layer's. `mask` bool (batch, 1, seq,
        seq), True where self-attention sees; None: causal, which padding on the right may be.
        """
        batch, seq, _ = embedded.shape
        places = torch.arange(seq, device=embedded.device).expand(batch, seq)
        if lengths is None:
            size = self.config.block_size
            lengths = places.new_full((batch, -(-seq // size)), size)
        positions = places.unsqueeze(0)
        if offsets is not None:
            positions = positions + offsets.T.unsqueeze(-1)
        count = len(self.model.layers)
        glimpse = WholeGlimpse(
            [keys] * count if isinstance(keys, Tensor) else keys,
            [values] * count if isinstance(values, Tensor) else values,
            block_borders(lengths, seq),
        )
        return self.model(embedded, places, WholeSequences(mask), positions, glimpse)
