"""Hardware: how fast a machine reads and multiplies, as far as a kernel gets of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from mmspec.errors import ConfigError

_MEASURED_S = 0.4  # for each of a CPU's figures


@dataclass(frozen=True)
class Hardware:
    """What is reached, not what the data sheet says."""

    name: str
    bytes_per_s: float
    gemm_flops: float  # of a large matrix product, a second
    attention_flops: float  # of attention over a long context, a second
    memory_bytes: float
    host_s: float = 0.0  # a forward takes no less: launching its kernels; 0 with CUDA graphs


def _gpu(
    name: str, *, peak_tb: float, peak_tflops: float, attention: float, memory_gb: float
) -> Hardware:
    """5/6 of the peak bandwidth and 0.71 of the peak product are what good kernels get;
    `attention`, the share for attention, is more on older chips, whose peak is less."""
    return Hardware(
        name,
        peak_tb * 1e12 * 5 / 6,
        peak_tflops * 1e12 * 0.708,
        peak_tflops * 1e12 * attention,
        memory_gb * 1e9,
    )


# Peaks of the data sheets: bandwidth, dense bfloat16, memory. Nothing here was measured.
HARDWARE: dict[str, Hardware] = {
    "h200": Hardware("h200", 4.0e12, 700e12, 400e12, 141e9),
    "h100": _gpu("h100", peak_tb=3.35, peak_tflops=989, attention=0.404, memory_gb=80),
    "a100": _gpu("a100", peak_tb=2.04, peak_tflops=312, attention=0.6, memory_gb=80),
    "l40s": _gpu("l40s", peak_tb=0.864, peak_tflops=362, attention=0.5, memory_gb=48),
    "4090": _gpu("4090", peak_tb=1.008, peak_tflops=165, attention=0.6, memory_gb=24),
}


def find_hardware(name: str) -> Hardware:
    """A GPU by its name; "cpu", which is measured here and now, in a second; or three numbers
    "TB/s,TFLOP/s,TFLOP/s" of bandwidth, product and attention. Raises ConfigError."""
    if name.lower() in HARDWARE:
        return HARDWARE[name.lower()]
    if name.lower() == "cpu":
        return this_cpu()
    try:
        bandwidth, gemm, attention = (float(part) * 1e12 for part in name.split(","))
    except ValueError:
        bandwidth = gemm = attention = 0.0
    if not all(0 < rate < float("inf") for rate in (bandwidth, gemm, attention)):  # nor NaN
        raise ConfigError(
            f"gpu {name!r}: expected one of {', '.join(HARDWARE)}, cpu, or three numbers such as "
            "4.0,700,400: TB/s, and TFLOP/s of matrix products and of attention"
        )
    return Hardware(name, bandwidth, gemm, attention, float("inf"))


def this_cpu() -> Hardware:
    """The CPU that runs this, in float32 and with torch's present number of threads: a sum over
    more memory than its caches hold, and products of the sizes that occur."""
    import torch  # here, since all else of a plan is arithmetic

    big = torch.ones(64 * 2**20)
    square, queries, keys = torch.ones(1024, 1024), torch.ones(64, 64), torch.ones(64, 8192)
    reading = big.nbytes / _best_s(lambda: big.sum())
    gemm = 2 * 1024**3 / _best_s(lambda: square @ square)
    attention = 2 * 64 * 64 * 8192 / _best_s(lambda: queries @ keys)
    threads = torch.get_num_threads()
    return Hardware(f"cpu, {threads} threads", reading, gemm, attention, float("inf"))


def _best_s(work: Callable[[], object]) -> float:
    """The least of several runs: other processes only ever add to it."""
    work()
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < _MEASURED_S:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
