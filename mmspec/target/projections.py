"""Projections: a norm and the linear layers that read what it makes, as one product."""

from collections.abc import Sequence
from operator import attrgetter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmspec.target.parts import Product, Products

_MAX_WEIGHTS = 2**18  # together; larger ones take their time in the product, not in being called
_MAX_ROWS = 64
_VERSION = attrgetter("_version")


class Projections:
    """RMSNorm (arXiv 1910.07467 equation 4) and linear layers. Small float32 ones are computed by
    a copy of their weights side by side, transposed, with the norm's weight multiplied in.

    The copy is made at the first call and again when a weight has changed since.
    """

    def __init__(self, norm: nn.Module, layers: Sequence[nn.Linear], *, copied: bool) -> None:
        """`copied` allows the copy. `norm` has a weight and a `variance_epsilon`."""
        self._norm = norm
        self._layers = list(layers)
        self._products: list[Product] = list(layers)
        self._joint: Product | None = None  # in place of them all
        self._draft_epsilon: Tensor | None = None  # of one whose products are others'
        self.sizes = [layer.out_features for layer in layers]
        self._copies = copied and sum(layer.weight.numel() for layer in layers) <= _MAX_WEIGHTS
        # Asked of all projections at every step: attributes of modules take long to find.
        self._owners = [
            norm._parameters,
            *(layer._parameters for layer in layers for _ in range(2)),
        ]
        self._names = ["weight", *["weight", "bias"] * len(layers)]
        self._made_from: list[int] = []
        self._copied: list[Tensor] = []  # held, so that no other weight comes to lie there
        self._weight: Tensor | None = None  # (in_features, all out_features)
        self._bias: Tensor | None = None  # (all out_features,)
        self._epsilon: Tensor | None = None  # of the sum of squares, not of their mean

    @property
    def num_bytes(self) -> int:
        """Bytes of the copy, once there is one."""
        return 0 if self._weight is None else self._weight.nbytes

    def __call__(self, states: Tensor) -> Tensor:
        """(..., in_features) -> (..., all out_features), the layers' in their order."""
        rows = states.numel() // states.shape[-1]
        if not self._copies or rows > _MAX_ROWS or states.dtype != torch.float32:
            normed = self._normed(states)
            if self._joint is not None:
                return self._joint(normed)
            made = [product(normed) for product in self._products]
            return made[0] if len(made) == 1 else torch.cat(made, dim=-1)
        self._follow()
        assert self._weight is not None and self._epsilon is not None
        flat = states.reshape(rows, -1)
        length = torch.linalg.vector_norm(flat, dim=-1, keepdim=True)
        unit = flat * torch.rsqrt(torch.addcmul(self._epsilon, length, length))
        if self._bias is None:
            out = torch.mm(unit, self._weight)
        else:
            out = torch.addmm(self._bias, unit, self._weight)
        return out.view(*states.shape[:-1], -1)

    def _normed(self, states: Tensor) -> Tensor:
        if states.dtype != torch.float32:  # a model's own norm may round on its way
            return self._norm(states)
        weight: Tensor = self._norm._parameters["weight"]  # type: ignore[assignment]
        if self._draft_epsilon is not None:  # four operations in place of torch's nine
            length = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
            mean = 1 / states.shape[-1]
            square = torch.addcmul(self._draft_epsilon, length, length, value=mean)
            return states * torch.rsqrt(square) * weight
        return F.rms_norm(states, states.shape[-1:], weight, self._norm.variance_epsilon)  # type: ignore[arg-type]

    def with_products(self, products: Products) -> "Projections":
        """The same, some of its linear layers computed otherwise, for drafts: the norm's last bits
        are others."""
        other = Projections(self._norm, self._layers, copied=False)
        other._products = [products.get(layer, layer) for layer in self._layers]
        other._joint = products.get(tuple(self._layers))
        other._draft_epsilon = torch.tensor(
            float(self._norm.variance_epsilon),  # type: ignore[arg-type]
            dtype=torch.float32,
        )
        return other

    def _follow(self) -> None:
        """Copies the weights again if they are not those that were copied."""
        found = [t for t in map(dict.get, self._owners, self._names) if t is not None]
        sources = [*map(Tensor.data_ptr, found), *map(_VERSION, found)]
        if sources == self._made_from and len(found) > len(self._layers):
            return
        scale: Tensor = self._norm.weight  # type: ignore[assignment]  # modules type it loosely
        with torch.no_grad():
            width = scale.shape[0]
            weights = torch.cat([layer.weight for layer in self._layers])
            self._weight = (weights * (scale * width**0.5)).T.contiguous()
            self._epsilon = torch.tensor(float(self._norm.variance_epsilon) * width)  # type: ignore[arg-type]
            self._bias = None
            if any(layer.bias is not None for layer in self._layers):
                self._bias = torch.cat(
                    [
                        scale.new_zeros(layer.out_features) if layer.bias is None else layer.bias
                        for layer in self._layers
                    ]
                )
        self._made_from, self._copied = sources, [t.detach() for t in found]
