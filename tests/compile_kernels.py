"""Compiles the kernels of blocks and of bitwise attention to machine code for a GPU that is not
there: an interpreter forgives what a compiler does not. Run by itself, without the interpreter;
prints a line a kernel.

    python tests/compile_kernels.py 90
"""

import sys
from collections.abc import Collection, Mapping

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmspec.attention.kernels import bitwise
from mmspec.target.gpu_linears import _CANDIDATES
from mmspec.target.kernels import gate, norm, rotary, skinny

_POINTERS = {
    "committed": "*i32", "num_nodes": "*i32", "num_tail": "*i32", "starts": "*i64",
    "committed_of": "*i32", "depths": "*i32", "ancestors": "*i32",
    "partial": "*fp32", "partial_largest": "*fp32", "partial_weight": "*fp32",
}  # fmt: skip
_NUMBERS = {
    "count": "i32", "nodes": "i32", "epsilon": "fp32", "segments": "i32",
    "scale_in": "fp32", "scale_out": "fp32",
}  # fmt: skip


def compiled(
    kernel: triton.JITFunction,
    constants: Mapping[str, object],
    *,
    capability: int,
    multiples: Collection[str] = (),
    warps: int = 4,
    stages: int = 3,
) -> None:
    """`multiples` are int arguments that are multiples of 16, as a launch would find them."""
    signature, hints = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        known = _NUMBERS | dict.fromkeys(multiples, "i32")
        signature[name] = known.get(name, _POINTERS.get(name, "*bf16"))
        if name not in _NUMBERS:
            hints[(index,)] = [["tt.divisibility", 16]]
    made = triton.compile(
        ASTSource(
            kernel,
            signature,
            {(kernel.arg_names.index(name),): value for name, value in constants.items()},
            hints,
        ),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": stages},
    )
    assert made.asm["cubin"]
    print(kernel.fn.__name__, made.metadata.shared, "cp.async" in made.asm["ptx"])


def main(capability: int, *, is_quick: bool) -> None:
    for rows, candidates in _CANDIDATES.items():
        if is_quick and rows > 16:
            continue
        for tiling in candidates[:1] if is_quick else candidates:
            tile = {
                "WIDTH": 4096, "ROWS": rows, "OUTPUTS": tiling.outputs, "INPUTS": tiling.inputs,
                "STAGES": tiling.stages,
            }  # fmt: skip
            shape = {"capability": capability, "warps": tiling.warps, "stages": tiling.stages}
            sizes = ("size_0", "size_1", "size_2", "out_width")
            layers = {"LAYERS": 3, "HAS_BIAS": True, **tile}
            compiled(skinny._multiply, layers, multiples=sizes, **shape)
            gated = {"ACTIVATION": "silu", **tile}
            if rows > 1 or not is_quick:
                compiled(skinny._multiply_gated, gated, multiples=("size",), **shape)
    common = {"BLOCK": 4096, "COMPUTE": tl.float32}
    added = {"HAS_ADDED": True, **common}
    compiled(norm._add_norm, added, multiples=("width",), capability=capability, warps=8)
    activated = {"ACTIVATION": "gelu_tanh", **common}
    compiled(
        gate._gate,
        activated,
        multiples=("width", "gate_stride", "up_stride"),
        capability=capability,
    )
    heads = {"HEADS": 32, "KV_HEADS": 8, "HALF": 64, "BLOCK": 64, "IS_NORMED": True}
    strides = ("query_stride", "key_stride", "value_stride")
    compiled(
        rotary._turn,
        {**heads, "COMPUTE": tl.float32},
        multiples=strides,
        capability=capability,
        warps=1,
    )
    compile_bitwise(capability)


def compile_bitwise(capability: int) -> None:
    """At Llama-3-8B's shape and 65 nodes a row."""
    both = {
        "NODES": 65, "DEPTH": 65, "VALUE_DIM": 128, "BLOCK_V": 128, "WINDOW": 512, "CHUNK": 0,
        "SEGMENT": bitwise._SEGMENT,
    }  # fmt: skip
    attended = {
        **both, "KV_HEADS": 8, "GROUP": 4, "MEMBERS": 4, "TILE": 8, "HEAD_DIM": 128,
        "BLOCK_D": 128, "BLOCK_N": 64, "HAS_SOFTCAP": True,
    }  # fmt: skip
    strides = (
        "query_batch", "query_head", "query_node", "key_slot", "key_head", "value_slot",
        "value_head",
    )  # fmt: skip
    compiled(bitwise.bitwise_kernel, attended, multiples=strides, capability=capability, stages=2)
    merged = {**both, "HEADS": 32, "TOGETHER": bitwise._TOGETHER, "HAS_SINKS": True}
    compiled(bitwise.merge_segments, merged, capability=capability)


if __name__ == "__main__":
    main(int(sys.argv[1]), is_quick="--quick" in sys.argv)
