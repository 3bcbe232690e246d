"""Setting: where a check runs, at which sizes, and until when."""

import gc
import os
import time
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch

EARLY_BEGIN = "early_begin"  # of kernels, among what an earlier try did not survive
_KEYS = {
    EARLY_BEGIN: ("decode.early_begin", "drafter.draft_model.early_begin"),
    "overlap": ("decode.overlap",),
}


class GpuLost(RuntimeError):
    """This process cannot use the GPU any more."""


@dataclass(frozen=True)
class Setting:
    """The same for all sections."""

    device: torch.device
    is_small: bool = False  # tiny shapes: shows that everything runs, and measures nothing
    minutes: float = 9.0  # for a section
    without: tuple[str, ...] = ()  # what an earlier try did not survive: backends, parts of _KEYS
    begun_s: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Seconds that are left of them."""
        return self.minutes * 60 - (time.monotonic() - self.begun_s)

    @property
    def overrides(self) -> list[str]:
        """Of each configuration: without what an earlier try did not survive."""
        return [f"{key}=never" for part in self.without for key in _KEYS.get(part, ())]

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def has_kernels(self) -> bool:
        """Whether Triton's kernels run: on a GPU, or interpreted."""
        is_run = self.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
        return is_run and find_spec("triton") is not None

    @property
    def dtype(self) -> torch.dtype:
        """What models are checked in: a small run is on a CPU, which may only emulate bfloat16."""
        return torch.bfloat16 if self.is_cuda else torch.float32

    @property
    def is_lost(self) -> bool:
        """Whether an earlier error has ended this process's use of the GPU. Waits for it."""
        if not self.is_cuda:
            return False
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError:
            return True
        return False

    def lacks(self, *, seconds: float = 0.0, num_bytes: float = 0.0) -> str:
        """What is not left of them, in words; "": nothing. A small run ends whatever its time."""
        if self.left_s < seconds and not self.is_small:
            return "no time left"
        return "" if self._has_memory(num_bytes) else f"no room for {num_bytes / 2**30:.1f} GiB"

    def _has_memory(self, num_bytes: float) -> bool:
        """Whether so much, and a tenth of it, is free on the device."""
        if not num_bytes or not self.is_cuda:
            return num_bytes < 2**31
        torch.cuda.empty_cache()
        return 1.1 * num_bytes < torch.cuda.mem_get_info(self.device)[0]

    def free(self) -> None:
        """Gives memory back that nothing holds any more."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()
