"""Linear layers that read the same states, on a GPU: the library's product each, or one skinny
product of all, whichever was measured to be quicker at that many rows."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from triton.runtime.errors import OutOfResources

from mmspec.kernels import raise_if_lost, shown
from mmspec.target.kernels.gate import gate
from mmspec.target.kernels.norm import add_norm
from mmspec.target.kernels.skinny import PADDED_ROWS, Tiling, multiply, multiply_gated
from mmspec.target.parts import Activation, Added, Product, Products, Shares
from mmspec.target.stacking import joint_layer
from mmspec.target.tilings import Shape, Tilings

logger = logging.getLogger(__name__)
Clock = Callable[[Callable[[], object]], float]
_CANDIDATES = {  # by padded rows
    1: (Tiling(16, 256, 4, 4), Tiling(8, 512, 4, 4)),
    # Two warps: four would read each weight from shared memory twice, and wait for that.
    16: (Tiling(16, 256, 2, 4), Tiling(32, 256, 4, 3), Tiling(64, 128, 4, 4)),
    # The more outputs, the seldomer rows are read again, which takes longer than weights do.
    64: (Tiling(32, 128, 4, 4), Tiling(64, 64, 4, 4), Tiling(128, 64, 8, 4)),
}
_SHARED = {  # of outputs that are too few for a program each multiprocessor, where a norm adds up
    64: (Tiling(128, 64, 8, 4, shares=4), Tiling(64, 64, 4, 4, shares=4)),
}
_MEASURED = (torch.bfloat16, torch.float16)
_LEAST_WEIGHTS = 2**21  # fewer stay in the GPU's cache, and take no time worth choosing
_LEAST_BYTES = 2**28  # of weights read by one run: several times the cache
_MOST_ERROR = 0.03  # of a product's length: sums in another order, and two roundings more
_LEAST_GAIN = 0.97  # of the library's time; what is no quicker than that changes nothing


class GpuLinears:
    """Up to 3 plain layers. With an `activation` there are two, whose outputs are multiplied:
    activation(first) * second."""

    def __init__(
        self,
        modules: Sequence[nn.Linear],
        tilings: Tilings,
        *,
        activation: Activation | None = None,
        is_added: bool = False,
    ) -> None:
        """`is_added`: of one layer, whose output is asked for by `added`."""
        self._modules = list(modules)
        self._products: Mapping[nn.Module, Product] = {}
        self._tilings = tilings
        self._activation = activation
        self._is_added = is_added

    def with_products(self, products: Products) -> "GpuLinears":
        """The same, some of its layers computed otherwise."""
        other = copy.copy(self)
        other._products = {
            module: products[module] for module in self._modules if module in products
        }
        return other

    @property
    def shape(self) -> Shape | None:
        """None for layers that no skinny product computes. Asked anew each time: weights may be
        replaced."""
        is_gated = self._activation is not None
        return Shape.of(self._modules, is_gated=is_gated, is_added=self._is_added)

    @property
    def device(self) -> torch.device:
        return self._modules[0].weight.device

    def __call__(self, states: Tensor) -> Sequence[Tensor]:
        """(batch, nodes, in_features) -> (batch, nodes, out_features) of each layer, or of the
        product alone."""
        return self.run(states, self._tiling(states))

    def added(self, states: Tensor) -> Added:
        """What one layer makes of them, to be added to the stream."""
        return self.run_added(states, self._tiling(states))

    def run_added(self, states: Tensor, tiling: Tiling | None) -> Added:
        """The same by this tiling; None: by the library."""
        if tiling is None or tiling.shares == 1:
            return self.run(states, tiling)[0]
        weights, is_early = [self._modules[0].weight], self._tilings.is_early
        out = multiply(states.flatten(0, 1), weights, None, tiling, is_early=is_early)
        return Shares(out.view(tiling.shares, *states.shape[:2], -1))

    def run(self, states: Tensor, tiling: Tiling | None) -> Sequence[Tensor]:
        """The same by this tiling; None: by the library."""
        is_early = self._tilings.is_early
        if tiling is None:
            made = self._by_library(states)
            if self._activation is None:
                return made
            product = gate(made[0], made[1], activation=self._activation, is_early=is_early)
            return [product]
        rows = states.flatten(0, 1)
        weights = [module.weight for module in self._modules]
        if self._activation is not None:
            product = multiply_gated(
                rows, *weights, tiling=tiling, activation=self._activation, is_early=is_early
            )
            return [product.view(*states.shape[:2], -1)]
        has_bias = self._modules[0].bias is not None
        biases = [module.bias for module in self._modules] if has_bias else None
        out = multiply(rows, weights, biases, tiling, is_early=is_early)
        out = out.view(*states.shape[:2], -1)
        return out.split([weight.shape[0] for weight in weights], dim=-1)

    def _tiling(self, states: Tensor) -> Tiling | None:
        shape = None if self._products else self.shape
        rows = states.shape[0] * states.shape[1]
        return None if shape is None else self._tilings.find(shape, rows)

    def _by_library(self, states: Tensor) -> Sequence[Tensor]:
        if self._products:
            return [self._products.get(module, module)(states) for module in self._modules]
        joint = joint_layer(self._modules)
        if joint is None:
            return [module(states) for module in self._modules]
        out = F.linear(states, joint.weight, joint.bias)
        return out.split([module.out_features for module in self._modules], dim=-1)


def measured(linears: Sequence[GpuLinears], clock: Clock) -> dict[tuple[Shape, int], Tiling]:
    """The tilings that are quicker than the library, by shape and padded rows. `clock` tells the
    time of a run. Layers of the same shape are run one after the other, so that no weight is in
    the cache."""
    alike: dict[Shape, list[GpuLinears]] = {}
    for group in linears:
        shape = group.shape
        if shape is not None and shape.dtype in _MEASURED and shape.num_weights >= _LEAST_WEIGHTS:
            alike.setdefault(shape, []).append(group)
    chosen = {}
    for shape, groups in alike.items():
        for rows in PADDED_ROWS:
            times = timed(groups, shape, rows, clock)
            best = min(times, key=lambda tiling: times[tiling])
            if best is not None and times[best] < _LEAST_GAIN * times[None]:
                chosen[shape, rows] = best
    return chosen


def candidates(shape: Shape, rows: int) -> Sequence[Tiling]:
    """What is tried for so many padded rows."""
    shared = _SHARED.get(rows, ()) if shape.is_added and not shape.has_bias else ()
    return (*_CANDIDATES[rows], *shared)


@torch.no_grad()
def timed(
    groups: Sequence[GpuLinears], shape: Shape, rows: int, clock: Clock
) -> dict[Tiling | None, float]:
    """What `clock` says of one group of a shape, by tiling; None: the library. A tiling that does
    not fit the GPU is left out, and with a warning one that fails or says something else."""
    some = groups[: -(-_LEAST_BYTES // (shape.num_weights * shape.dtype.itemsize))]
    states = torch.randn(1, rows, shape.ins, device=some[0].device).to(shape.dtype)

    stream = states.new_zeros(1, rows, shape.outs[0])

    def run(tiling: Tiling | None) -> None:
        for group in some:
            if shape.is_added:  # with the norm behind it, which sums up shares
                add_norm(stream, group.run_added(states, tiling), stream[0, 0], epsilon=1e-6)
            else:
                group.run(states, tiling)

    def made(tiling: Tiling | None) -> Tensor:
        if shape.is_added:
            return (stream + some[0].run_added(states, tiling)).float()
        return torch.cat([part.float() for part in some[0].run(states, tiling)], dim=-1)

    times: dict[Tiling | None, float] = {None: clock(partial(run, None)) / len(some)}
    expected = made(None)
    for tiling in candidates(shape, rows):
        try:
            error = _error(made(tiling), expected)
            if error < _MOST_ERROR:
                times[tiling] = clock(partial(run, tiling)) / len(some)
                continue
            reason = f"its product is off by {error:.2g}"
        except OutOfResources:  # of shared memory
            continue
        except Exception as failure:  # whatever a compiler, or the driver, may raise
            raise_if_lost(failure, states.device)
            reason = shown(failure)
        logger.warning("%s for %s at %d rows is left out: %s", tiling, shape.outs, rows, reason)
    return times


def _error(found: Tensor, expected: Tensor) -> float:
    """Of all outputs, in shares of what is expected; 0 where that overflows, as float16 may."""
    if not expected.isfinite().all():
        return 0.0
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))
