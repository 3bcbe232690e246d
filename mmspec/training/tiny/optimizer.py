"""Muon for the matrices inside the layers, AdamW for embeddings, biases and norms."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class Optimizer:
    """Both optimizers behind one `step`."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for module in modules:
            for name, parameter in module.named_parameters():
                is_inner = "layers." in name or "projector" in name
                (matrices if parameter.ndim == 2 and is_inner else others).append(parameter)
        self._parameters = [*matrices, *others]
        self._muon = torch.optim.Muon(matrices, weight_decay=0.0)
        self._adamw = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, rate: float) -> None:
        """One update at Muon's rate; AdamW's is a seventh of it. Clears the gradients.

        Gradients that are not finite change nothing.
        """
        is_finite = bool(nn.utils.clip_grad_norm_(self._parameters, 1.0).isfinite())
        for optimizer, its_rate in ((self._muon, rate), (self._adamw, rate / 7)):
            if is_finite:
                for group in optimizer.param_groups:
                    group["lr"] = its_rate
                optimizer.step()
            optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Momenta of both optimizers, for a checkpoint."""
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self._muon.load_state_dict(state["muon"])
        self._adamw.load_state_dict(state["adamw"])
