"""MedusaHeadConfig: the shape of a set of heads."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MedusaHeadConfig:
    """A set of `num_heads` heads. Head k, from 0 on, predicts the token that comes k + 1 places
    after the one that the target's own head predicts."""

    hidden_size: int  # of the target's states
    vocab_size: int | None  # the target's; None: whatever it is, where its lm_head speaks
    num_heads: int = 5
    num_layers: int = 1  # residual blocks a head
    has_bias: bool = True  # of the blocks' linear layers
    has_own_heads: bool = True  # False: all heads speak through the target's own lm_head
    num_mapped: int | None = None  # tokens that its heads can say; None: all
    base_model: str = ""  # whom it was trained for

    @property
    def as_json(self) -> dict[str, Any]:
        """Under the names of the published config.json."""
        return {
            "model_type": "medusa",
            "medusa_num_heads": self.num_heads,
            "medusa_num_layers": self.num_layers,
            "base_model_name_or_path": self.base_model,
            "hidden_size": self.hidden_size,
            "vocab_size": self.vocab_size,
            "original_lm_head": not self.has_own_heads,
            "medusa_fc_bias": self.has_bias,
            "truncated_vocab_size": self.num_mapped or self.vocab_size,
        }
