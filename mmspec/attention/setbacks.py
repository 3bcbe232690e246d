"""Setbacks: which backends failed at which calls on this machine, and who computes them instead.

A package that was built for another device, a version with other arguments, a kernel that does not
compile or does not fit: none of it shows before a first call. Such a failure costs speed, and not
the request.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mmspec.attention.call import TreeCall
from mmspec.attention.reach import Reach
from mmspec.attention.rung import LayerRule
from mmspec.errors import BackendWarning
from mmspec.kernels import SetAside, is_recording, raise_if_lost, shown


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
            except Exception as error:  # whatever a package raises
                raise_if_lost(error, query.device)
                instead = next(remaining, None)
                if instead is None:
                    raise
                kind = CallKind.of(query, keys, values, call=call, rule=rule)
                self._failed.add((way.name, kind))
                reason = shown(error)
                self._tell(way.name, reason, instead.name)
                if is_recording(query.device):
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
