"""KV kernels beside the same done by indexing: writes of ragged trees, commits of paths."""

from collections.abc import Iterator
from importlib import import_module
from itertools import product

import torch
from torch import Tensor

from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting

_LAYERS = 3


def check(setting: Setting, recorder: Recorder) -> None:
    dtypes = (torch.float32,) if setting.is_small else (torch.float32, torch.bfloat16)
    dims = (16,) if setting.is_small else (64, 80, 128, 256)
    compared = 0
    for dtype, head_dim in product(dtypes, dims):
        given = (setting.device, dtype, head_dim)
        for what, are_equal in (*_writes(*given), _commit(*given)):
            recorder.check(are_equal, f"{what} of {head_dim}, {dtype}: other bits in the buffers")
            compared += 1
    recorder.found("kv cells", compared)


def _writes(device: torch.device, dtype: torch.dtype, head_dim: int) -> Iterator[tuple[str, bool]]:
    kernels = import_module("mmspec.kv.kernels")
    for kv_heads in (1, 3, 8):
        counts, first = [5, 0, 9, 1], [2, 30, 40, 60]
        states = [_drawn(device, dtype, 4, 9, kv_heads, head_dim).transpose(1, 2) for _ in "kv"]
        for own in states:
            for row, count in enumerate(counts):
                own[row, :, count:] = torch.nan  # padding must not be seen anywhere
        buffers = [_drawn(device, dtype, 80, kv_heads, head_dim) for _ in "kv"]
        expected = [buffer.clone() for buffer in buffers]
        for buffer, own in zip(expected, states, strict=True):
            for row, count in enumerate(counts):
                buffer[first[row] : first[row] + count] = own[row, :, :count].transpose(0, 1)
        place = {"first": torch.tensor(first), "counts": torch.tensor(counts)}
        kernels.write(*buffers, *states, **{name: t.to(device) for name, t in place.items()})
        yield f"kv write: {kv_heads} heads", all(map(torch.equal, buffers, expected))


def _commit(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[str, bool]:
    moves_of = import_module("mmspec.kv.moves")
    buffers = [_drawn(device, dtype, 64, 8, head_dim) for _ in range(2 * _LAYERS)]
    paths = [(4, (0, 2, 3, 9)), (20, (1, 5)), (40, (0, 1)), (50, ())]
    expected = [buffer.clone() for buffer in buffers]
    for old, new in zip(buffers, expected, strict=True):
        for end, path in paths:
            for place, node in enumerate(path):
                new[end + place] = old[end + node]
    moves_of.PathMover(buffers).move([moves_of.Move(end, path) for end, path in paths])
    return "kv commit: heads", all(map(torch.equal, buffers, expected))


def _drawn(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)
