"""What each compiled kernel makes of its reads and writes, at Llama 3 8B's shapes.

    PYTHONPATH=tests python -m ptx.traffic

Threads of a warp that want different words of one bank of shared memory wait for each other, and
memory moves whole sectors of 32 bytes. The table has how many turns and sectors two blocks of each
launch take, beside the fewest that would do; exit code 1 where banks take twice as long.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

import ptx.launch
from ptx.machine import Machine
from ptx.memory import GlobalMemory, Lanes, SharedMemory, Who

_BANKS, _SECTOR = 32, 32  # of 4 bytes each; bytes
_NODES, _CONTEXT = (1, 4, 16, 64), 4096
_BLOCKS = 2


@dataclass
class Traffic:
    turns: int = 0  # of shared memory
    fewest_turns: int = 0
    sectors: int = 0
    fewest_sectors: int = 0

    def of_shared(self, addresses: Lanes, size: int, warps: Lanes) -> None:
        together = min(32, 128 // size)  # threads that one turn may serve
        for own in _by_warp(addresses, warps):
            for first in range(0, len(own), together):
                words = _cells(own[first : first + together], size, 4)
                self.turns += int(np.bincount(words % _BANKS).max())
                self.fewest_turns += -(-len(words) // _BANKS)

    def of_memory(self, addresses: Lanes, size: int, warps: Lanes) -> None:
        for own in _by_warp(addresses, warps):
            self.sectors += len(_cells(own, size, _SECTOR))
            self.fewest_sectors += -(-len(np.unique(own)) * size // _SECTOR)


def _by_warp(addresses: Lanes, warps: Lanes) -> Iterator[Lanes]:
    for warp in np.unique(warps):
        yield addresses[warps == warp].astype(np.int64)


def _cells(addresses: Lanes, size: int, unit: int) -> Lanes:
    every: Lanes = np.unique((addresses[:, None] + np.arange(0, size, min(size, unit))) // unit)
    return every


@dataclass
class Counter:
    """Its `launch` stands for that of `ptx.launch`; each kind of launch is counted once."""

    now: str = ""
    counted: dict[tuple[Machine, tuple[int, ...]], tuple[str, Traffic]] = field(
        default_factory=dict
    )

    def launch(
        self,
        machine: Machine,
        given: Sequence[tuple[Any, str]],
        grid: tuple[int, ...],
        *,
        is_late: bool,
    ) -> None:
        if (machine, grid) in self.counted:
            return
        traffic = Traffic()
        self.counted[machine, grid] = self.now, traffic

        class Shared(SharedMemory):
            def read(self, addresses: Lanes, width: int, count: int = 1, *, warps: Lanes) -> Any:
                traffic.of_shared(addresses, width * count, warps)
                return super().read(addresses, width, count, warps=warps)

            def write(self, addresses: Lanes, words: Any, *, warps: Lanes) -> None:
                traffic.of_shared(addresses, words.dtype.itemsize * words.shape[1], warps)
                super().write(addresses, words, warps=warps)

        class Memory(GlobalMemory):
            def read(self, addresses: Lanes, width: int, count: int, *, who: Who) -> Any:
                traffic.of_memory(addresses, width * count, who.warps)
                return super().read(addresses, width, count, who=who)

            def write(self, addresses: Lanes, words: Any, *, who: Who) -> None:
                traffic.of_memory(addresses, words.dtype.itemsize * words.shape[1], who.warps)
                super().write(addresses, words, who=who)

        memory = Memory([value for value, _ in given if isinstance(value, Tensor)])
        bits, how = ptx.launch.bits_of(machine, given), {"grid": grid, "is_late": is_late}
        with np.errstate(all="ignore"):
            machine.run(bits, **how, memory=memory, blocks=_BLOCKS, shared_memory=Shared)


def launches() -> Iterator[tuple[str, Callable[[], object]]]:
    import compile_kernels as kernels

    kernels.triton_tree._device = lambda device: kernels.H200
    model = kernels._LARGE[0]
    for nodes in _NODES:
        for one in kernels._attention(model, nodes, _CONTEXT):
            yield f"{nodes} nodes", one
    parts = (kernels._kv, kernels._noise, kernels._bitwise, kernels._products)
    for part, arguments in zip(parts, ((), (), (), (model,)), strict=True):
        for one in part(*arguments, is_quick=True):
            yield part.__name__.strip("_"), one
    for one in kernels._block(model, earlies=(True,)):
        yield "block", one


def main() -> int:
    ptx.launch.compile_kernels(90, is_late=False)
    counter = Counter()
    ptx.launch.launch = counter.launch
    for counter.now, one in launches():
        one()
    waiting = False
    print(f"{'':12}{'kernel':26}{'blocks':>16}{'turns':>9}{'of':>9}{'sectors':>10}{'of':>9}")
    for (machine, grid), (what, own) in counter.counted.items():
        waits = own.turns > 2 * own.fewest_turns
        waiting |= waits
        numbers = f"{own.turns:9}{own.fewest_turns:9}{own.sectors:10}{own.fewest_sectors:9}"
        size = " x ".join(map(str, grid))
        print(f"{what:12}{machine.program.name:26}{size:>16}{numbers}{'  !' if waits else ''}")
    return int(waiting)


if __name__ == "__main__":
    sys.exit(main())
