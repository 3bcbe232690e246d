"""A pretended CUDA device: tensors that say they are on one, with a CPU that computes.

Within `device()` the code that only a GPU takes runs on a machine without one: tensors are plain
ones whose device is `cuda:0`, Triton kernels run by its interpreter on the same memory, and CUDA
graphs are recorded and replayed. What a GPU refuses is refused (tensors of two devices in one
operation, a wait while a graph is recorded), what it leaves undefined is made useless (memory
nobody wrote, what a graph has not computed yet), and each wait for the device is counted, with the
place in mmspec that waits. It says nothing about speed, about kernels as they are compiled, or
about streams that run at the same time.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported

from pretend.device import Device, Wait, device

__all__ = ["Device", "Wait", "device"]
