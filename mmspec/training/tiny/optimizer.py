"""Muon for the matrices inside the layers, AdamW for embeddings, biases and norms."""

from collections import defaultdict
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

_MOMENTUM = 0.95


def orthogonalize(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly, of a stack (count, rows, columns).

    The quintic Newton-Schulz iteration of Muon (Jordan et al., 2024).
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.transpose(1, 2)


class OptimizerState(TypedDict):
    """Momenta, as a checkpoint keeps them."""

    muon: list[Tensor]
    adamw: dict[str, Any]


class Optimizer:
    """Both optimizers behind one `step`; matrices of equal shape are updated in one go."""

    def __init__(self, modules: list[nn.Module]) -> None:
        groups: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
        others: list[nn.Parameter] = []
        for module in modules:
            for name, parameter in module.named_parameters():
                inner = "layers." in name or "projector" in name
                if parameter.ndim == 2 and inner:
                    groups[tuple(parameter.shape)].append(parameter)
                else:
                    others.append(parameter)
        self.groups = list(groups.values())
        self.buffers = [torch.zeros_like(torch.stack(list(group))) for group in self.groups]
        self.adamw = torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
        self.parameters = others + [p for group in self.groups for p in group]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update at Muon's rate; AdamW's is a seventh of it. Clears the gradients.

        Gradients that are not finite change nothing.
        """
        if not nn.utils.clip_grad_norm_(self.parameters, 1.0).isfinite():
            self._clear()
            return
        for group, buffer in zip(self.groups, self.buffers, strict=True):
            if all(parameter.grad is None for parameter in group):
                continue
            present = [p.grad if p.grad is not None else torch.zeros_like(p) for p in group]
            gradients = torch.stack(present)
            buffer.lerp_(gradients, 1 - _MOMENTUM)
            update = orthogonalize(gradients.lerp(buffer, _MOMENTUM))
            stretch = max(1.0, update.shape[1] / update.shape[2]) ** 0.5
            for parameter, change in zip(group, update, strict=True):
                if parameter.grad is not None:
                    parameter.add_(change, alpha=-rate * stretch)
        for settings in self.adamw.param_groups:
            settings["lr"] = rate / 7
        self.adamw.step()
        self._clear()

    def _clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> OptimizerState:
        """Momenta of both optimizers, for a checkpoint."""
        return {"muon": self.buffers, "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: OptimizerState) -> None:
        """Puts back what `state_dict` gave."""
        for buffer, saved in zip(self.buffers, state["muon"], strict=True):
            buffer.copy_(saved)
        self.adamw.load_state_dict(state["adamw"])
