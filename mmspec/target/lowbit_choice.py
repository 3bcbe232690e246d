"""LowBitKernels: which of torch's kernels multiplies a low-bit weight, by shape, as measured."""

import math
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor, nn

from mmspec.target.lowbit import Bits, Pack, packers

_ROWS = (1, 4)  # of a draft's forward
_ROUNDS = 5
_MEASURED = 2**20  # weights of a layer that a choice is made by: a few milliseconds to pack
_LEAST_WEIGHTS = 2**16  # fewer take no time worth choosing
_LEAST_GAIN = 0.9  # of the first one's time


class LowBitKernels:
    """All that have `bits` on a device, one of them chosen for each shape of weight. What is
    quickest differs by CPU, by torch's build and by the number of threads, which are those in force
    while it is asked."""

    def __init__(self, bits: Bits, device: torch.device) -> None:
        """Raises ModelError where there is none."""
        self._kinds = packers(bits, device)
        self._chosen: dict[tuple[int, int], Pack] = {}

    def pack_for(self, modules: Sequence[nn.Linear]) -> Pack:
        """Of the modules' weights, one below the other."""
        outs, ins = sum(m.weight.shape[0] for m in modules), modules[0].weight.shape[1]
        if len(self._kinds) == 1 or outs * ins < _LEAST_WEIGHTS:
            return self._kinds[0]
        if (outs, ins) not in self._chosen:
            most = max(_MEASURED // ins, 1)
            whole = torch.cat([module.weight.detach()[:most] for module in modules])[:most]
            self._chosen[outs, ins] = quickest(self._kinds, whole)
        return self._chosen[outs, ins]


def quickest(
    kinds: Sequence[Pack], weight: Tensor, *, clock: Callable[[], float] = time.perf_counter
) -> Pack:
    """The first one, unless another usually takes much less than the first one at its best: on a
    busy machine nothing is learnt, and nothing changes. Any that cannot multiply such a weight is
    left out, the first one excepted."""
    inputs = [torch.ones(rows, weight.shape[1]).to(weight) for rows in _ROWS]
    made = {}
    for kind in kinds:
        try:
            made[kind] = kind(weight)
            made[kind](inputs[0])
        except (RuntimeError, ValueError):
            made.pop(kind, None)
    times: dict[Pack, list[float]] = {kind: [] for kind in made}
    for _ in range(_ROUNDS):  # in turns
        for kind, packed in made.items():
            begun = clock()
            for states in inputs:
                packed(states)
            times[kind].append(clock() - begun)
    least = _LEAST_GAIN * min(times.get(kinds[0], [math.inf]))
    usual = {kind: median(taken) for kind, taken in times.items()}
    best = min(usual, key=lambda kind: usual[kind], default=kinds[0])
    return best if usual.get(best, math.inf) < least else kinds[0]
