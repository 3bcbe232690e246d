"""Rotary: the rotations of queries and keys (arXiv 2104.09864), scaled as transformers does it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from mmspec.drafters.heads.config import BlockConfig
from mmspec.errors import ConfigError


class Rotation(NamedTuple):
    """Rotations of some tokens, in the dtype of what is rotated."""

    cos: Tensor  # (batch, 1, seq, head_dim)
    sin: Tensor  # (batch, 1, seq, head_dim)

    def __call__(self, states: Tensor) -> Tensor:
        """(batch, heads, seq, head_dim), rotated."""
        first, second = states.chunk(2, dim=-1)
        return states * self.cos + torch.cat([-second, first], dim=-1) * self.sin


class Rotary(nn.Module):
    """Positions -> rotations. A text's length changes none of them: where a scaling depends on it
    ("dynamic", "longrope"), it is the one of texts that the model was first made for.

    A head counts the text's tokens one by one, an image's placeholders like any others, unless it
    was trained in the planes of M-RoPE.
    """

    def __init__(self, config: BlockConfig) -> None:
        """Raises ConfigError for a scaling that this transformers does not know."""
        super().__init__()
        with torch.device("cpu"):  # also where a module is made without memory
            frequencies, self.scale = _frequencies(config)
        self._sections = list(config.sections)
        # No parameter and no buffer: `.to(dtype)` must not round it.
        self._frequencies = {torch.device("cpu"): frequencies}

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """The rotations at `positions` (batch, seq), of M-RoPE (planes, batch, seq)."""
        frequencies = self._frequencies.get(positions.device)
        if frequencies is None:
            frequencies = self._frequencies[torch.device("cpu")].to(positions.device)
            self._frequencies[positions.device] = frequencies
        angles = positions.unsqueeze(-1).float() * frequencies
        if positions.ndim == 3:  # each section of the frequencies turns by its own plane
            parts = angles.split(self._sections, dim=-1)
            angles = torch.cat([part[plane] for plane, part in enumerate(parts)], dim=-1)
        angles = torch.cat([angles, angles], dim=-1).unsqueeze(1)
        return Rotation(
            (angles.cos() * self.scale).to(dtype), (angles.sin() * self.scale).to(dtype)
        )


def _frequencies(config: BlockConfig) -> tuple[Tensor, float]:
    """(head_dim / 2,) float32, and what rotated states are multiplied by."""
    kind = config.rope["rope_type"]
    if kind == "default":
        steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        return 1.0 / config.rope["rope_theta"] ** steps, 1.0
    if kind not in ROPE_INIT_FUNCTIONS:
        raise ConfigError(
            f"the head's rope_type is {kind!r}; expected default or one of "
            f"{', '.join(ROPE_INIT_FUNCTIONS)}"
        )
    made = LlamaConfig(
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_positions,
        rope_parameters=dict(config.rope),
    )
    return ROPE_INIT_FUNCTIONS[kind](made, device="cpu")
