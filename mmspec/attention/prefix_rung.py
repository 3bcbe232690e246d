"""What backends have in common that attend to the prefix alone: the tail is merged behind it."""

from typing import Protocol

import torch
from torch import Tensor

from mmspec.attention.call import TreeCall
from mmspec.attention.rows import Attended
from mmspec.attention.rung import LayerRule
from mmspec.attention.tail import finish

_MAX_HEAD_DIM = 256
HALVES = (torch.bfloat16, torch.float16)


class PrefixKernel(Protocol):
    """Attends to the committed tokens of every row, as `finish` wants it."""

    def __call__(
        self, query: Tensor, keys: Tensor, values: Tensor, call: TreeCall, rule: LayerRule
    ) -> Attended: ...


def attend_behind(
    prefix: PrefixKernel,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    call: TreeCall,
    rule: LayerRule,
) -> Tensor:
    """`tree_attention` by a kernel for the prefix, which is not run where no row has one."""
    attended = None
    if call.may_have_prefix:
        attended = prefix(query, keys, values, call, rule)
    return finish(query, keys, values, attended, call=call, rule=rule)


def suits_flash(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    rule: LayerRule,
    dtypes: tuple[torch.dtype, ...] = HALVES,
) -> bool:
    """What all flash kernels ask of a call: 16 bits, heads of one size, a prefix seen whole."""
    return (
        query.dtype in dtypes
        and keys.dtype == values.dtype == query.dtype
        and keys.shape[2] == values.shape[2] <= _MAX_HEAD_DIM
        and keys.shape[2] % 8 == 0  # others are padded, the whole cache with them
        and rule.reach.is_full
    )
