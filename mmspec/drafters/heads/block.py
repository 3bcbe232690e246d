"""DecoderBlock: a decoder layer of the Llama kind, under the published parameter names."""

from torch import Tensor, nn
from transformers.activations import ACT2FN

from mmspec.drafters.heads.attention import Attend, SelfAttention
from mmspec.drafters.heads.config import BlockConfig
from mmspec.drafters.heads.norm import RMSNorm
from mmspec.drafters.heads.rotary import Rotation


class GatedMLP(nn.Module):
    """SwiGLU (arXiv 2002.05202), or with another activation."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(hidden, inner, bias=bias)
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, states: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(states)) * self.up_proj(states))


class DecoderBlock(nn.Module):
    """Attention and MLP, each behind a norm of its input and added to it."""

    def __init__(self, config: BlockConfig, *, layer: int = 0, has_input_norm: bool = True) -> None:
        """`layer`: its number in the cache. Without `has_input_norm` attention reads what it is
        given, as in the first layer of EAGLE."""
        super().__init__()
        self._layer = layer
        self._has_input_norm = has_input_norm
        self.self_attn = SelfAttention(config)
        self.mlp = GatedMLP(config)
        if has_input_norm:
            self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, states: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """(batch, seq, hidden) -> the same."""
        read = self.input_layernorm(states) if self._has_input_norm else states
        states = states + self.self_attn(read, rotation, attend, layer=self._layer)
        return states + self.mlp(self.post_attention_layernorm(states))
