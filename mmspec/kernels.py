"""Kernels: a module of Triton kernels that has an equal made of tensor operations, which takes over
where the module is missing or a kernel of it fails.

What a compiler, a launcher or a driver may raise is no short list, and none of it shows before a
first call. Such a failure costs speed, and not the request.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib import import_module
from typing import Any

import torch

from mmspec.errors import BackendWarning

_SHOWN = 300  # characters of an error: a compiler's may be pages long
# Of errors after which nothing on the device can be trusted, and no call succeeds any more. They
# are of work queued earlier: who happens to be told has not failed.
_FATAL = (
    "illegal memory access", "misaligned address", "unspecified launch failure",
    "device-side assert", "illegal instruction", "invalid program counter",
    "not supported on global/shared address space", "hardware stack error", "launch timed out",
    "uncorrectable ECC error", "uncorrectable NVLink error", "ERROR_ILLEGAL_ADDRESS",
    "cudaErrorIllegalAddress", "ERROR_LAUNCH_FAILED", "cudaErrorLaunchFailure",
)  # fmt: skip
_USED_UP = (  # not only torch asks for memory, and on the host it has no error of its own for it
    "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate memory",
)  # fmt: skip


class SetAside(RuntimeError):
    """Kernels failed while a graph was recorded, and are not asked for the next recording."""


class Kernels:
    """The kernels of one module, on CUDA devices."""

    def __init__(self, module: str, does: str) -> None:
        """`does`: what they compute, for a warning."""
        self._name, self._does = module, does
        self._has_failed = False

    def on(self, device: torch.device | str) -> Any:
        """The module, or None where its equal is to compute: on other devices, without Triton, and
        once one of the kernels has failed."""
        if self._has_failed or torch.device(device).type != "cuda":
            return None
        return self._module

    @cached_property
    def _module(self) -> Any:
        try:
            return import_module(self._name)
        except ModuleNotFoundError as error:  # no Triton
            if error.name == "triton":
                return None
            self._put_aside(error)
        except Exception as error:  # a Triton with other names, or one that does not load
            self._put_aside(error)
        return None

    @contextmanager
    def or_else(self, device: torch.device) -> Iterator[None]:
        """What is raised within it by kernels on the device goes no further, for what comes behind
        it to compute the same; from then on `on` says None.

        Raised are what says that the device is lost or its memory used up, and SetAside where a
        graph is being recorded.
        """
        try:
            yield
        except Exception as error:
            raise_if_lost(error, device)
            self._put_aside(error)
            if is_recording(device):
                raise SetAside(f"{self._does} by kernels: {shown(error)}") from error

    def _put_aside(self, error: Exception) -> None:
        self._has_failed = True
        warnings.warn(
            f"mmspec's kernels for {self._does} failed ({shown(error)}); tensor operations compute "
            "the same from now on, and slower",
            BackendWarning,
            stacklevel=5,
        )


def raise_if_lost(error: Exception, device: torch.device) -> None:
    """The error again, if it says that the device is lost or its memory is used up, or that a
    recording has ended; one of work queued earlier that is known only now."""
    if says_used_up(error) or isinstance(error, SetAside) or says_lost(error):
        raise error
    settle(device)


def says_used_up(error: Exception) -> bool:
    """Whether the error says that there is no memory left."""
    is_said = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return is_said or _says(error, _USED_UP)


def says_lost(error: Exception) -> bool:
    """Whether the error says that this process has lost the device."""
    return _says(error, _FATAL)


def _says(error: Exception, texts: Sequence[str]) -> bool:
    return any(text in str(error) for text in texts)


def settle(device: torch.device) -> None:
    """After a failure: raises what comes of work queued earlier, and of nothing else."""
    if device.type == "cuda" and not is_recording(device):
        with suppress(RuntimeError):  # a launch that failed may have left this for the next one
            torch.zeros(1, device=device)
        torch.cuda.current_stream(device).synchronize()


def is_recording(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def shown(error: Exception) -> str:
    """An error in a line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."
