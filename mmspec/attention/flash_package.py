"""What the backends by flash attention have in common: each attends to the prefix alone, and the
tail is merged behind it."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmspec.attention.call import TreeCall
from mmspec.attention.installed import Installed, first_installed
from mmspec.attention.rows import Attended
from mmspec.attention.rung import LayerRule
from mmspec.attention.tail import finish

_MAX_HEAD_DIM = 256
HALVES = (torch.bfloat16, torch.float16)


class FlashPackage:
    """A backend by one function of an optional package, found when it is first asked for."""

    name: str
    is_graph_safe = True
    modules: ClassVar[tuple[str, ...]]  # that may have the function, best first
    function: ClassVar[str]
    arguments: ClassVar[tuple[str, ...]]  # beside queries, keys and values, by name
    packages: ClassVar[str]  # to be installed for it
    majors: ClassVar[range]  # of compute capabilities that it has kernels for

    def __init__(self, function: Callable[..., Any] | None = None, *, device: str = "cuda") -> None:
        """`function`: in place of the installed one; `device`: the type of device that it computes
        on."""
        self._given = function
        self._device = device

    @cached_property
    def installed(self) -> Installed:
        return self._find() if self._given is None else Installed(self._given, "")

    def _find(self) -> Installed:
        return first_installed(
            self.modules, self.function, arguments=self.arguments, packages=self.packages
        )

    def missing(self) -> str:
        return self.installed.missing

    def can_attend(self, query: Tensor, keys: Tensor, values: Tensor, *, rule: LayerRule) -> bool:
        """What all of them ask for: 16 bits, heads of one size, a prefix seen whole."""
        return (
            query.device.type == self._device
            and self._major(query.device) in self.majors
            and query.dtype in self._dtypes()
            and keys.dtype == values.dtype == query.dtype
            and keys.shape[2] == values.shape[2] <= _MAX_HEAD_DIM
            and keys.shape[2] % 8 == 0  # others are padded, the whole cache with them
            and rule.reach.is_full
        )

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
    ) -> Tensor:
        prefix = None
        if call.may_have_prefix:
            prefix = self._prefix(query, keys, values, call, rule)
        return finish(query, keys, values, prefix, call=call, rule=rule)

    def _prefix(
        self, query: Tensor, keys: Tensor, values: Tensor, call: TreeCall, rule: LayerRule
    ) -> Attended:
        """Of every row's nodes to its committed tokens, as `finish` wants it."""
        raise NotImplementedError

    def _dtypes(self) -> tuple[torch.dtype, ...]:
        return HALVES

    def _major(self, device: torch.device) -> int:
        given = self._given is not None
        return self.majors.start if given else torch.cuda.get_device_capability(device)[0]


def in_a_cache(
    keys: Tensor, values: Tensor, call: TreeCall, device: torch.device
) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    """Keys and values (batch, slots, kv_heads, head_dim), and where the rows lie in them as
    `flash_attn_with_kvcache` is told: all in one buffer, what is before a row is padding."""
    if call.is_single:  # no lengths at all: the row's prefix is what it is given
        row = call.rows[0]
        return (row.prefix_of(keys).unsqueeze(0), row.prefix_of(values).unsqueeze(0)), {}
    rows = call.prefixes(device)
    lengths = {
        "cache_leftpad": rows.starts,
        "cache_seqlens": rows.stops,  # counted from the buffer's begin
        "cache_batch_idx": rows.buffer,
    }
    return (keys.unsqueeze(0), values.unsqueeze(0)), lengths
