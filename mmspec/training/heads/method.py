"""What the loop asks of one kind of head: what to read, what to minimise, what it drafts."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from mmspec.training.heads.batch import Batch

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Losses:
    """One batch's."""

    total: Tensor  # () that is minimised
    parts: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # () each, without gradients, as shown


class HeadMethod(Protocol):
    """One kind of head for one target, and how it is trained."""

    @property
    def module(self) -> nn.Module:
        """In float32: what is trained, and nothing else."""

    @property
    def taps(self) -> frozenset[int]:
        """Hidden states of the target that it reads."""

    @property
    def kv_layer(self) -> int | None:
        """The target's layer whose keys it reads."""

    @property
    def depth(self) -> int:
        """Drafts a step that are evaluated."""

    @property
    def rate(self) -> float:
        """The highest learning rate, where none is given."""

    def loss(self, batch: Batch, generator: torch.Generator) -> Losses:
        """Of the learned tokens, over `Batch.num_learned`. All that is drawn comes from the
        generator, which is the CPU's (see `on_device`)."""

    def drafts(self, batch: Batch, *, top_k: int) -> Tensor:
        """(depth, batch, seq, top_k) int64: at [d, b, s] the best tokens for place s + 2 + d of the
        text, by what is known when token s + 1 was chosen and token s read, and the text's own
        tokens in between; -1 where there is none."""

    def save(self, folder: Path, *, dtype: torch.dtype) -> None:
        """Writes the head in its published form; each file is replaced in one go."""


def on_device(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """A generator for large draws there, that depends on the CPU's; on a CPU itself."""
    if device.type == "cpu":
        return generator
    seed = torch.randint(2**62, (), generator=generator).item()
    return torch.Generator(device).manual_seed(int(seed))


def as_stored(module: Module, dtype: torch.dtype) -> Module:
    """A copy on the CPU in the dtype, of which nothing is made where the module lies: beside a
    target there may be no room for the head twice."""
    memo: dict[int, object] = {}
    for weight in module.parameters():
        memo[id(weight)] = nn.Parameter(weight.detach().to("cpu", dtype), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.detach().cpu()
    return copy.deepcopy(module, memo)
