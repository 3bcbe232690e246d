"""Clock: how long a piece of work takes, from its call to the end of what it started."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from mmspec.bench.harness import turned

Work = Callable[[], object]


class Clock:
    """Wall time with the device waited for: a decode loop waits for it once a step too."""

    def __init__(self, device: torch.device, *, rounds: int = 15, limit_s: float = 4.0) -> None:
        """A measurement ends after `rounds`, or once it has taken `limit_s` seconds."""
        self._device = device
        self._rounds = rounds
        self._limit_s = limit_s

    def median_ms(self, work: Work) -> float:
        """Of several runs, after three that are not counted."""
        return self.medians_ms({"": work})[""]

    def medians_ms(self, works: Mapping[str, Work]) -> dict[str, float]:
        """Of several ways to do the same, in turns, each beginning with another one."""
        samples = self.samples_ms(works)
        return {name: statistics.median(values) for name, values in samples.items()}

    def samples_ms(self, works: Mapping[str, Work]) -> dict[str, list[float]]:
        """The same, each run."""
        names = list(works)
        for name in names * 3:  # kernels are compiled, and graphs recorded
            self._one_ms(works[name])
        samples: dict[str, list[float]] = {name: [] for name in names}
        begun = time.perf_counter()
        for turn in range(self._rounds):
            for name in turned(names, turn):
                samples[name].append(self._one_ms(works[name]))
            if time.perf_counter() - begun > self._limit_s and turn >= 2:
                break
        return samples

    def _one_ms(self, work: Work) -> float:
        self._wait()
        begun = time.perf_counter()
        work()
        self._wait()
        return (time.perf_counter() - begun) * 1e3

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def copy_bandwidth(device: torch.device, *, num_bytes: int) -> float:
    """Bytes a second, read and written, of a copy within the device's memory. `num_bytes` should be
    many times its caches."""
    source = torch.randn(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    rounds, samples = 10, []
    for _ in range(7):
        milliseconds = Clock(device, rounds=1).median_ms(
            lambda: [target.copy_(source) for _ in range(rounds)]
        )
        samples.append(2 * source.nbytes * rounds / milliseconds * 1e3)
    return statistics.median(samples)
