"""Setbacks: which backends failed at which calls on this machine, and who computes them instead.

A package that was built for another device, a version with other arguments, a kernel that does not
compile or does not fit: none of it shows before a first call. Such a failure costs speed, and not
the request.
"""

import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mmspec.attention.call import TreeCall
from mmspec.attention.reach import Reach
from mmspec.attention.rung import LayerRule
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


class SetAside(RuntimeError):
    """A backend failed while a graph was recorded, and is not asked for the next recording."""


class Way(NamedTuple):
    """One way to compute a call."""

    name: str
    compute: Callable[[], Tensor]


@dataclass(frozen=True)
class CallKind:
    """What kernels are chosen, compiled and launched by: one that failed at a call of a kind would
    fail at the next."""

    device: torch.device
    dtype: torch.dtype
    head_dims: tuple[int, int]  # of keys and of values
    group: int
    nodes: int  # rounded up to a power of two
    lengths: str  # that of one row, those of several, or read on the device alone
    reach: Reach
    has_softcap: bool
    has_sinks: bool

    @staticmethod
    def of(
        query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
    ) -> "CallKind":
        lengths = "one" if call.is_single else "several"
        return CallKind(
            query.device,
            query.dtype,
            (keys.shape[2], values.shape[2]),
            query.shape[1] // keys.shape[1],
            1 << (query.shape[2] - 1).bit_length(),
            lengths if call.prepared is None else "device",
            rule.reach,
            rule.softcap is not None,
            rule.sinks is not None,
        )


class Setbacks:
    """Remembers failures until the process ends: they are the machine's, not a model's."""

    def __init__(self) -> None:
        self._failed: set[tuple[str, CallKind]] = set()
        self._told: set[tuple[str, str]] = set()

    def first_that_works(
        self,
        ways: Iterable[Way],
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        call: TreeCall,
        rule: LayerRule,
    ) -> Tensor:
        """What the first of the `ways` computes that did not fail at such a call; one that fails
        now is put aside for the next with a BackendWarning.

        Raises what the last way does; what says that the device is lost, or its memory is used up,
        whoever met it; and SetAside where a graph is being recorded, which a failure ends.
        """
        kind = CallKind.of(query, keys, values, call=call, rule=rule) if self._failed else None
        remaining = iter(way for way in ways if (way.name, kind) not in self._failed)
        way = next(remaining)
        while True:
            try:
                return way.compute()
            except (torch.OutOfMemoryError, SetAside):
                raise
            except Exception as error:  # whatever a package raises
                instead = next(remaining, None)
                if instead is None or _is_lost(error, query.device):
                    raise
                kind = CallKind.of(query, keys, values, call=call, rule=rule)
                self._failed.add((way.name, kind))
                reason = _shown(error)
                self._tell(way.name, reason, instead.name)
                if _is_recording(query.device):
                    raise SetAside(f"attention by {way.name}: {reason}") from error
            way = instead

    def _tell(self, name: str, reason: str, instead: str) -> None:
        if (name, reason) in self._told:
            return
        self._told.add((name, reason))
        warnings.warn(
            f"attention by {name} failed ({reason}); calls of this kind are computed by {instead} "
            "from now on. decode.attention_backend names one that is asked first",
            BackendWarning,
            stacklevel=4,
        )


SETBACKS = Setbacks()


def settle(device: torch.device) -> None:
    """After a failure: raises what comes of work queued earlier, and of nothing else."""
    if device.type == "cuda" and not _is_recording(device):
        with suppress(RuntimeError):  # a launch that failed may have left this for the next one
            torch.zeros(1, device=device)
        torch.cuda.current_stream(device).synchronize()


def _is_lost(error: Exception, device: torch.device) -> bool:
    """Whether the error says so of the device; one that is known only now is raised."""
    if says_lost(error):
        return True
    settle(device)
    return False


def says_lost(error: Exception) -> bool:
    """Whether the error says that this process has lost the device."""
    return any(text in str(error) for text in _FATAL)


def _is_recording(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _shown(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
