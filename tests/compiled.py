"""Compiles the tree and merge kernels for a GPU that need not be there, and tells what they take.

    python tests/compiled.py < requests.json     one JSON object a line, in their order

A request: {"arch": 90, "dtype": "bf16", "head_dim": 128, "tile": {...}, "constants": {...}}, or
with "splits" in place of a tile, which are merged. Runs in a process of its own, for a process
either interprets kernels or compiles them.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmspec.attention.kernels.merge_kernel import merge_kernel
from mmspec.attention.kernels.tiles import Tile, least_columns, merge_blocks, padded
from mmspec.attention.kernels.tree_kernel import tree_kernel

_DATA = ("query", "keys", "values", "out", "prefix_out", "sinks")
_FLOATS = ("partial", "partial_lse", "prefix_lse")
_INTS = ("committed", "num_nodes", "num_tail", "depths", "visible")
_WHOLE_HEADS = ("query_", "key_", "value_", "prefix_")  # strides: multiples of 16 elements


def compile_tree_kernel(
    arch: int, dtype: str, head_dim: int, tile: Tile, constants: dict[str, Any]
) -> Any:
    fixed = {
        **_heads(head_dim),
        "GROUP": 4,
        "HEAD_DIM": head_dim,
        "BLOCK_D": padded(head_dim),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "IS_SPLIT": True,
        "LEAST": least_columns(tile),
        "WINDOW": 0,
        "CHUNK": 0,
        "HAS_SOFTCAP": False,
        "BEHIND_PREFIX": False,
        **constants,
    }
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return _compiled(tree_kernel, arch, dtype, fixed, options)


def compile_merge_kernel(
    arch: int, dtype: str, head_dim: int, splits: int, constants: dict[str, Any]
) -> Any:
    fixed = {**_heads(head_dim), **merge_blocks(splits, head_dim), **constants}
    return _compiled(merge_kernel, arch, dtype, fixed, {"num_warps": 1})


def _heads(head_dim: int) -> dict[str, Any]:
    value = {"VALUE_DIM": head_dim, "BLOCK_V": padded(head_dim)}
    return {"HAS_SINKS": False, "IS_EARLY": False, **value}


def _compiled(
    kernel: Any, arch: int, dtype: str, fixed: dict[str, Any], options: dict[str, int]
) -> Any:
    signature, aligned = {}, {}
    for index, name in enumerate(kernel.arg_names):
        kind = "i32"
        if name in fixed:
            kind = "constexpr"
        elif name in _DATA:
            kind = f"*{dtype}"
        elif name in _FLOATS:
            kind = "*fp32"
        elif name in _INTS:
            kind = "*i32"
        elif name == "starts":
            kind = "*i64"
        elif name.startswith("scale_"):
            kind = "fp32"
        signature[name] = kind
        if kind.startswith("*") or name.startswith(_WHOLE_HEADS):
            aligned[(index,)] = [["tt.divisibility", 16]]
    places = {(kernel.arg_names.index(name),): value for name, value in fixed.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def stack_bytes(cubin: bytes) -> int:
    """What a thread spills, by the tool that comes with triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [str(tool), "--dump-resource-usage", str(path)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"STACK:(\d+)", told)
    assert found is not None, told
    return int(found[1])


def main() -> None:
    for request in json.load(sys.stdin):
        if "splits" in request:
            kernel = compile_merge_kernel(**request)
        else:
            kernel = compile_tree_kernel(tile=Tile(**request.pop("tile")), **request)
        answer = {
            "shared_bytes": kernel.metadata.shared,
            "stack_bytes": stack_bytes(kernel.asm["cubin"]),
            "products": kernel.asm["ptx"].count("mma"),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
