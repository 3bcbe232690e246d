"""EagleHead: the heads of EAGLE-1 (arXiv 2401.15077 section 3) and EAGLE-3 (2503.01840 section 3).

    EAGLE-1   [embedding | feature] -> fc -> layers -> feature -> the target's head
    EAGLE-3   three features -> fc -> [norm(embedding) | norm(feature)] -> layer -> norm -> own head

A feature is the target's state one token back: token t stands beside what the target says of t - 1.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmspec.drafters.eagle.config import EagleHeadConfig
from mmspec.drafters.heads import (
    Attend,
    BlockConfig,
    DecoderBlock,
    GatedMLP,
    RMSNorm,
    Rotary,
    Rotation,
    SelfAttention,
    WholeSequences,
)
from mmspec.drafters.heads.vocabulary import target_ids


class HeadStates(NamedTuple):
    """What a head says of some tokens, each (batch, seq, hidden)."""

    features: Tensor  # that their children read
    read: Tensor  # that logits are made of


class EagleHead(nn.Module):
    """A head under the published parameter names. What it shares with its target is not in it."""

    d2t: Tensor
    t2d: Tensor

    def __init__(self, config: EagleHeadConfig) -> None:
        super().__init__()
        self.config = config
        block = config.block
        hidden, eps = block.hidden_size, block.rms_norm_eps
        self.rotary = Rotary(block)
        self.embed_tokens = nn.Embedding(block.vocab_size, hidden) if config.has_embedding else None
        self.lm_head: nn.Linear | None = None
        if config.has_head:
            self.lm_head = nn.Linear(hidden, config.draft_vocab_size, bias=False)
        if config.version == 1:
            self.fc: nn.Linear | None = nn.Linear(2 * hidden, hidden, bias=config.fc_bias)
            self.layers = nn.ModuleList(
                DecoderBlock(block, layer=n, has_input_norm=n > 0 or config.first_norm)
                for n in range(block.num_layers)
            )
            if config.has_outer_norms:
                self.embedding_layernorm = RMSNorm(hidden, eps)
                self.pre_lm_head_layernorm = RMSNorm(hidden, eps)
            return
        joined = self.num_features * config.target_hidden_size
        self.fc = nn.Linear(joined, hidden, bias=config.fc_bias) if config.has_fc else None
        if config.norm_before_fc:
            self.input_norm = RMSNorm(joined, eps)
        if config.fc_norm:
            each = (RMSNorm(config.target_hidden_size, eps) for _ in range(self.num_features))
            self.fc_norm = nn.ModuleList(each)
        self.midlayer = JoiningBlock(block, is_residual_normed=config.norm_before_residual)
        self.layers = nn.ModuleList(
            DecoderBlock(block, layer=n) for n in range(1, block.num_layers)
        )
        self.norm = RMSNorm(hidden, eps)
        # Where its vocabulary is a part of the target's: d2t[i] + i is the target's id of token i.
        self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.long))
        self.register_buffer("t2d", torch.ones(block.vocab_size, dtype=torch.bool))

    @property
    def num_features(self) -> int:
        """States of the target that are joined to one feature."""
        config = self.config
        if config.version == 1 or not config.has_fc:
            return 1
        return 3 if config.layers is None else len(config.layers)

    @property
    def target_ids(self) -> Tensor | None:
        """(draft vocab,) int64: the target's ids of its tokens; None: they are the same."""
        if self.config.version == 1 or self.config.draft_vocab_size == self.config.block.vocab_size:
            return None
        return target_ids(self.d2t)

    def set_vocabulary(self, ids: Tensor) -> None:
        """EAGLE-3: the target's tokens `ids` (draft vocab,) int64, increasing, are the head's."""
        with torch.no_grad():
            self.d2t.copy_(ids - torch.arange(ids.shape[0]))
            self.t2d.zero_()[ids] = True

    def project(self, features: Tensor) -> Tensor:
        """The target's states, joined (..., num_features * target_hidden), in the form that
        `forward` reads: (..., hidden)."""
        if self.config.version == 1 or self.fc is None:
            return features
        if self.config.norm_before_fc:
            features = self.input_norm(features)
        if self.config.fc_norm:
            parts = features.chunk(self.num_features, dim=-1)
            normed = [norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)]
            features = torch.cat(normed, dim=-1)
        return self.fc(features)

    def forward(
        self,
        embeddings: Tensor,
        features: Tensor,
        *,
        positions: Tensor | None = None,
        attend: Attend | None = None,
    ) -> HeadStates:
        """`embeddings` (batch, seq, hidden) of the tokens 1, 2, ..., and beside each of them the
        feature of the token before it, (batch, seq, hidden): the target's, projected, or what this
        returned for the token before. `positions` (batch, seq), or (planes, batch, seq), are those
        of the features: without, 0, 1, ...; `attend`: without, whole sequences, each token seeing
        those before it."""
        if positions is None:
            positions = torch.arange(embeddings.shape[1], device=embeddings.device).unsqueeze(0)
        attend = WholeSequences() if attend is None else attend
        rotation = self.rotary(positions, features.dtype)
        if self.config.version == 1:
            return self._first(embeddings, features, rotation, attend)
        states = self.midlayer(embeddings, features, rotation, attend)
        for layer in self.layers:
            states = layer(states, rotation, attend)
        read = self.norm(states)
        return HeadStates(read if self.config.norm_output else states, read)

    def _first(
        self, embeddings: Tensor, features: Tensor, rotation: Rotation, attend: Attend
    ) -> HeadStates:
        assert self.fc is not None
        if self.config.has_outer_norms:
            embeddings = self.embedding_layernorm(embeddings)
        states = self.fc(torch.cat([embeddings, features], dim=-1))
        for layer in self.layers:
            states = layer(states, rotation, attend)
        read = self.pre_lm_head_layernorm(states) if self.config.has_outer_norms else states
        return HeadStates(states, read)


class JoiningBlock(nn.Module):
    """The layer of EAGLE-3: its attention reads embedding and feature side by side."""

    def __init__(self, config: BlockConfig, *, is_residual_normed: bool) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self._is_residual_normed = is_residual_normed
        self.self_attn = SelfAttention(config, width=2 * hidden)
        self.mlp = GatedMLP(config)
        self.hidden_norm = RMSNorm(hidden, eps)
        self.input_layernorm = RMSNorm(hidden, eps)
        self.post_attention_layernorm = RMSNorm(hidden, eps)

    def forward(
        self, embeddings: Tensor, features: Tensor, rotation: Rotation, attend: Attend
    ) -> Tensor:
        """Each (batch, seq, hidden) -> the same."""
        normed = self.hidden_norm(features)
        read = torch.cat([self.input_layernorm(embeddings), normed], dim=-1)
        states = normed if self._is_residual_normed else features
        states = states + self.self_attn(read, rotation, attend, layer=0)
        return states + self.mlp(self.post_attention_layernorm(states))
