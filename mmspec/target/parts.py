"""What a decoder block is made of apart from attention, and who computes it: a kit for a device.

The stream of hidden states travels as two tensors, `states` and what the branch before adds to
them, `added`, or None: a kit that can adds them where it norms them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mmspec.attention import TreeCall

Product = Callable[[Tensor], Tensor]  # (..., in_features) -> (..., out_features)
# What computes a layer; or several that read the same states, their outputs side by side.
Products = Mapping[nn.Module | tuple[nn.Module, ...], Product]
Activation = Literal["silu", "gelu_tanh"]
_ACTIVATIONS: dict[str, Activation] = {  # transformers' modules
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
}


@dataclass(frozen=True)
class Angles:
    """What queries and keys are rotated by, in the form that its kit reads. RoPE: arXiv 2104.09864
    section 3.4.2, a pair being a dimension and the one half a head further."""

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True)
class Shares:
    """What is added to the stream as a sum that is yet to be made, by whoever reads it next."""

    each: Tensor  # (shares, batch, nodes, hidden) float32

    def __radd__(self, states: Tensor) -> Tensor:
        """The stream with it: summed up in the order of the shares, and rounded once."""
        total = self.each[0]
        for share in self.each[1:]:
            total = total + share
        return states + total.to(states.dtype)


Added = Tensor | Shares


class Entered(NamedTuple):
    """A branch's first half."""

    states: Tensor  # (batch, nodes, hidden) the stream, all added
    made: Tensor


class Headed(NamedTuple):
    """The end of a model."""

    logits: Tensor  # (batch, nodes, vocab)
    normed: Callable[[], Tensor]  # gives (batch, nodes, hidden) what the head read, now or later


class BlockParts(Protocol):
    """One block's norms, projections, rotation and activation. All of (batch, nodes, width)."""

    @property
    def num_bytes(self) -> int:
        """Memory beside the model."""

    def queries(
        self, states: Tensor, added: Added | None, angles: Angles, call: TreeCall
    ) -> Entered:
        """Makes rotated queries, (batch, nodes, heads, head_dim), and writes the nodes' keys and
        values to the cache."""

    def out(self, attended: Tensor) -> Added: ...

    def gated(self, states: Tensor, added: Added | None) -> Entered:
        """Makes activation(gate) * up, (batch, nodes, intermediate)."""

    def down(self, product: Tensor) -> Added: ...

    def with_products(self, products: Products) -> "BlockParts":
        """The same, some of its linear layers computed otherwise."""


class HeadParts(Protocol):
    """The last norm and the head."""

    def __call__(self, states: Tensor, added: Added | None) -> Headed: ...

    def with_products(self, products: Products) -> "HeadParts":
        """The same, the head computed otherwise if it is among them."""


class Kit(Protocol):
    """Makes the parts of blocks for one kind of device."""

    device_type: str
    dtypes: tuple[torch.dtype, ...]

    def block(self, layer: nn.Module) -> BlockParts: ...

    def head(self, norm: nn.Module, linear: nn.Linear) -> HeadParts: ...

    def angles(self, cos: Tensor, sin: Tensor) -> Angles:
        """Of (batch, nodes, head_dim) each, as transformers makes them."""

    def settle(self) -> None:
        """All parts are made: what there is to choose between is measured."""

    def simplify(self) -> bool:
        """Parts failed: they give up what is likeliest to have. False where nothing is left."""


def activation_of(module: nn.Module) -> Activation | None:
    """None for one that no kit computes."""
    mlp: Any = module
    return _ACTIVATIONS.get(type(mlp.act_fn).__name__)
