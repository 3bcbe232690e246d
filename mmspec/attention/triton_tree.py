"""Our Triton kernel: prefix and tail of all rows in one launch, and one more that merges splits."""

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, lru_cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from mmspec.attention.call import TreeCall
from mmspec.attention.kernels.tiles import (
    LARGE_SHARED_BYTES,
    Tile,
    least_columns,
    merge_blocks,
    num_splits,
    padded,
    tile_for,
)
from mmspec.attention.rows import Attended
from mmspec.attention.rung import LayerRule

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_LOG2_E = 1.4426950408889634
_MAX_HEAD_DIM = 256
_INTERPRETED_PROCESSORS = 4  # programs run one after the other there, but splits shall be seen


class TritonTree:
    """Reads each key once for all nodes and heads of its group, and lengths on the device."""

    name = "triton"
    is_graph_safe = True

    def __init__(self, tile: Tile | None = None, splits: int | None = None) -> None:
        """For measurements: `tile` and `splits` instead of what the table says."""
        self.tile = tile
        self.splits = splits

    def missing(self) -> str:
        return self._missing

    @cached_property
    def _missing(self) -> str:
        if find_spec("triton") is None:
            return "the package triton, which comes with torch for CUDA on Linux"
        if not torch.cuda.is_available() and not _is_interpreted():
            return "a CUDA device"
        return ""

    def can_attend(self, query: Tensor, keys: Tensor, values: Tensor, *, rule: LayerRule) -> bool:
        return (
            (query.is_cuda or _is_interpreted())
            and query.dtype in _DTYPES
            and keys.dtype == values.dtype == query.dtype
            and max(keys.shape[2], values.shape[2]) <= _MAX_HEAD_DIM
            and keys.stride(2) == values.stride(2) == 1
        )

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        call: TreeCall,
        rule: LayerRule,
        prefix: Attended | None = None,
    ) -> Tensor:
        """`prefix`: what the prefix gave already, `out` (batch, nodes, kv_heads, group, head_dim)
        and `lse` (batch, nodes, kv_heads, group); only the tail is read then. Raises TritonError
        where a kernel does not compile, or does not fit the device."""
        from mmspec.attention.kernels.early import launch_options
        from mmspec.attention.kernels.merge_kernel import merge_kernel
        from mmspec.attention.kernels.tree_kernel import tree_kernel

        if query.stride(3) != 1:
            query = query.contiguous()
        batch, heads, nodes, head_dim = query.shape
        _, kv_heads, value_dim = values.shape
        group = heads // kv_heads
        pairs = nodes * group
        tensors = call.tensors(query.device)
        device = _device(query.device)
        tile = self.tile or tile_for(
            max(head_dim, value_dim),
            pairs,
            query.element_size(),
            shared_bytes=device.shared_bytes,
        )
        tiles = tile.num_tiles(pairs)
        splits = 1
        if prefix is None:
            programs = tiles * batch * kv_heads
            columns = _seen_columns(call, rule, tensors.depths.shape[1])
            splits = self.splits or num_splits(tile, programs, columns, device.processors)
        out = query.new_empty(batch, nodes, heads, value_dim)
        partial = partial_lse = out
        if splits > 1:
            shape = (batch, kv_heads, splits, pairs)
            partial = query.new_empty(*shape, value_dim, dtype=torch.float32)
            partial_lse = query.new_empty(shape, dtype=torch.float32)
        # Not read without a prefix; only the strides' number counts then.
        done = prefix
        if done is None:
            by_group = out.unflatten(2, (kv_heads, group))
            done = Attended(by_group, by_group[..., 0])
        assert done.out.stride(4) == 1, "a head's values lie together"
        sinks = out if rule.sinks is None else rule.sinks
        scale_in, scale_out = rule.scaling * _LOG2_E, 1.0
        if rule.softcap is not None:
            scale_in, scale_out = rule.scaling / rule.softcap, rule.softcap * _LOG2_E
        with on_device(query.device):
            tree_kernel[(tiles, batch * kv_heads, splits)](
                query,
                keys,
                values,
                out,
                partial,
                partial_lse,
                done.out,
                done.lse,
                sinks,
                tensors.starts,
                tensors.committed,
                tensors.num_nodes,
                tensors.num_tail,
                tensors.depths,
                tensors.visible,
                scale_in,
                scale_out,
                nodes,
                splits,
                kv_heads,
                tensors.depths.stride(0),
                tensors.visible.stride(0),
                tensors.visible.stride(1),
                query.stride(0),
                query.stride(1),
                query.stride(2),
                keys.stride(0),
                keys.stride(1),
                values.stride(0),
                values.stride(1),
                *done.out.stride()[:4],
                *done.lse.stride(),
                GROUP=group,
                HEAD_DIM=head_dim,
                VALUE_DIM=value_dim,
                BLOCK_D=padded(head_dim),
                BLOCK_V=padded(value_dim),
                BLOCK_M=tile.block_m,
                BLOCK_N=tile.block_n,
                IS_SPLIT=splits > 1,
                LEAST=least_columns(tile),
                WINDOW=rule.reach.window or 0,
                CHUNK=rule.reach.chunk or 0,
                HAS_SOFTCAP=rule.softcap is not None,
                HAS_SINKS=rule.sinks is not None,
                BEHIND_PREFIX=prefix is not None,
                num_warps=tile.num_warps,
                num_stages=tile.num_stages,
                **launch_options(call.is_early),
            )
            if splits > 1:
                blocks = merge_blocks(splits, value_dim)
                merge_kernel[(batch * nodes, heads, -(-value_dim // blocks["BLOCK_V"]))](
                    partial,
                    partial_lse,
                    out,
                    sinks,
                    tensors.num_nodes,
                    nodes,
                    splits,
                    kv_heads,
                    group,
                    VALUE_DIM=value_dim,
                    **blocks,
                    HAS_SINKS=rule.sinks is not None,
                    num_warps=1,
                    **launch_options(call.is_early),
                )
        return out


def _seen_columns(call: TreeCall, rule: LayerRule, tail: int) -> int:
    """The most columns that the nodes of a row can see."""
    reach = min(filter(None, (rule.reach.window, rule.reach.chunk)), default=call.max_columns)
    return min(call.max_columns, reach + tail)


def _is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


class _Device(NamedTuple):
    processors: int
    shared_bytes: int  # of a multiprocessor


@lru_cache
def _device(device: torch.device) -> _Device:
    if device.type != "cuda":
        return _Device(_INTERPRETED_PROCESSORS, LARGE_SHARED_BYTES)
    found = torch.cuda.get_device_properties(device)
    return _Device(found.multi_processor_count, found.shared_memory_per_multiprocessor)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device; a model may be spread over several."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
