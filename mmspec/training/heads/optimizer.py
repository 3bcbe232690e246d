"""AdamW over float32 weights, with clipped gradients."""

from typing import Any

import torch
from torch import nn


class Optimizer:
    """One update a `step`; gradients that are not finite change nothing."""

    def __init__(self, module: nn.Module, *, clip: float, weight_decay: float) -> None:
        self._parameters = [one for one in module.parameters() if one.requires_grad]
        self._clip = clip
        # Norms and biases are not pulled to 0.
        decayed = [one for one in self._parameters if one.ndim >= 2]
        others = [one for one in self._parameters if one.ndim < 2]
        groups = [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=1.0, betas=(0.9, 0.95)
        )

    def step(self, rate: float) -> bool:
        """Clears the gradients; False where they were not finite."""
        norm = nn.utils.clip_grad_norm_(self._parameters, self._clip)
        is_finite = bool(norm.isfinite())
        if is_finite:
            for group in self._adamw.param_groups:
                group["lr"] = rate
            self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        return is_finite

    def state_dict(self) -> dict[str, Any]:
        return self._adamw.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the moments; what was given for the weights' decay stays."""
        decays = [group["weight_decay"] for group in self._adamw.param_groups]
        self._adamw.load_state_dict(state)
        for group, decay in zip(self._adamw.param_groups, decays, strict=True):
            group["weight_decay"] = decay
