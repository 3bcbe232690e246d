"""Kernels of a block against transformers' own modules: equal but for the order of sums."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from interpreted import DEVICE
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from mmspec.attention import RowNodes
from mmspec.attention.tensors import TreeTensors

pytest.importorskip("triton")

from triton.errors import TritonError

from mmspec.target.gpu_linears import GpuLinears
from mmspec.target.kernels.gate import gate
from mmspec.target.kernels.norm import add_norm
from mmspec.target.kernels.rotary import HeadNorms, turn
from mmspec.target.kernels.skinny import Tiling, multiply, multiply_gated
from mmspec.target.parts import Shares
from mmspec.target.triton_parts import TritonKit

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LOOSE: dict[torch.dtype, Any] = {
    torch.float64: {"atol": 1e-6, "rtol": 1e-6},  # norms are computed in float32
    torch.float16: {"atol": 1e-5, "rtol": 2e-3},  # one last bit
}
TILING = Tiling(outputs=16, inputs=32, warps=4, stages=2)


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def assert_rounds_alike(found: Tensor, expected: Tensor) -> None:
    """Equal but for a few last bits: sums have another order, and on a GPU exp other last bits."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    torch.testing.assert_close(found, expected, **LOOSE.get(expected.dtype, {}))
    if expected.dtype in (torch.bfloat16, torch.float16):
        share = float((found != expected).float().mean())
        assert share < 0.02, f"{share:.1%} of the numbers were rounded elsewhere"


@pytest.mark.parametrize("width", [16, 72])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_is_normed(dtype: torch.dtype, width: int) -> None:
    states, added = (drawn(2, 5, width, dtype=dtype) for _ in range(2))
    norm = LlamaRMSNorm(width, 1e-5).to(DEVICE, dtype)
    norm.weight.data.copy_(torch.randn(width))
    summed, normed = add_norm(states, added, norm.weight, epsilon=1e-5)
    assert torch.equal(summed, states + added)
    assert_rounds_alike(normed, norm(states + added))
    same, normed = add_norm(states, None, norm.weight, epsilon=1e-5)
    assert same is states
    assert_rounds_alike(normed, norm(states))


@pytest.mark.filterwarnings("ignore:overflow")  # exp(-x) of a gate far below zero: 0 in the end
@pytest.mark.parametrize("dtype", DTYPES)
def test_gates_are_activated(dtype: torch.dtype) -> None:
    stacked = 3 * drawn(2, 3, 1400, dtype=dtype)
    gates, ups = stacked.chunk(2, dim=-1)  # rows that are not next to one another
    assert_rounds_alike(gate(gates, ups, activation="silu"), F.silu(gates) * ups)
    expected = F.gelu(gates, approximate="tanh") * ups
    found = gate(gates, ups, activation="gelu_tanh")
    torch.testing.assert_close(
        found, expected, atol=2e-3 if dtype.itemsize == 2 else 1e-6, rtol=0.01
    )


# Three rows: (slots 40 to 47: 3 committed, 4 nodes), (slots 0 to 8: 5 committed, 2 tail tokens of
# a call before, 2 nodes), and one that is only padding.
ROWS = [
    RowNodes(40, 3, np.tri(4, dtype=np.bool_), np.arange(4)),
    RowNodes(0, 5, np.tri(4, dtype=np.bool_)[2:], np.arange(4)),
]
SLOTS = [[43, 44, 45, 46], [7, 8]]


@pytest.mark.parametrize(
    "dtype, heads, kv_heads, head_dim, is_normed",
    [
        (torch.float64, 2, 1, 16, True),
        (torch.float32, 3, 1, 12, True),
        (torch.bfloat16, 2, 2, 16, False),
        (torch.bfloat16, 2, 1, 16, True),
        (torch.float16, 2, 1, 8, False),
    ],
)
def test_heads_are_turned_and_written_to_their_slots(
    dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, is_normed: bool
) -> None:
    batch, nodes = 3, 4
    tensors = TreeTensors.of(ROWS, DEVICE, batch=batch, nodes=nodes, tail=4)
    stacked = drawn(batch, nodes, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    query, key, value = stacked.split(sizes, dim=-1)  # rows that are not next to one another
    key = key.contiguous()
    cos, sin = (drawn(batch, nodes, head_dim, dtype=dtype) for _ in range(2))
    keys, values = (drawn(60, kv_heads, head_dim, dtype=dtype) for _ in range(2))
    own_keys, own_values = keys.clone(), values.clone()
    q_norm, k_norm = (LlamaRMSNorm(head_dim, 1e-5).to(DEVICE, dtype) for _ in range(2))
    for norm in (q_norm, k_norm):
        norm.weight.data.copy_(torch.randn(head_dim))
    norms = HeadNorms(q_norm.weight, k_norm.weight, 1e-5) if is_normed else None
    turned = turn(
        query, key, value, cos=cos, sin=sin, keys=keys, values=values, tensors=tensors, norms=norms
    )
    by_head: list[Any] = [t.unflatten(-1, (-1, head_dim)) for t in (query, key, value)]
    if is_normed:
        by_head[0], by_head[1] = q_norm(by_head[0]), k_norm(by_head[1])
    expected, own_key = (
        t.transpose(1, 2)
        for t in apply_rotary_pos_emb(*(t.transpose(1, 2) for t in by_head[:2]), cos, sin)
    )
    loose = LOOSE.get(dtype, {})
    torch.testing.assert_close(turned, expected, **loose)
    for row, slots in enumerate(SLOTS):
        for node, slot in enumerate(slots):
            own_keys[slot], own_values[slot] = own_key[row, node], by_head[2][row, node]
    torch.testing.assert_close(keys, own_keys, **loose)
    assert torch.equal(values, own_values), "all other slots are as they were"
    if not is_normed:
        assert torch.equal(turned, expected) and torch.equal(keys, own_keys)


@pytest.mark.gpu(real=True)
def test_a_replayed_graph_writes_where_the_tensors_say_by_then() -> None:
    tensors = TreeTensors.of(ROWS[:1], DEVICE, nodes=4, tail=4)
    keys, values = (torch.zeros(60, 1, 16, device=DEVICE) for _ in range(2))
    states, cos, sin = (torch.randn(1, 4, 16, device=DEVICE) for _ in range(3))
    buffers: dict[str, Any] = {"cos": cos, "sin": sin, "keys": keys, "values": values}
    turn(states, states, states, **buffers, tensors=tensors)
    written = keys[43:47].clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        turn(states, states, states, **buffers, tensors=tensors)
    moved = RowNodes(10, 7, np.tri(2, dtype=np.bool_), np.arange(2))
    tensors.copy_(TreeTensors.of([moved], DEVICE, nodes=4, tail=4))
    keys.zero_()
    graph.replay()
    assert torch.equal(keys[17:19], written[:2])
    assert int((keys != 0).any(-1).sum()) == 2, "padding nodes wrote nothing"


@pytest.mark.parametrize("rows, width", [(1, 64), (1, 72), (3, 64), (33, 72)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_rows_are_multiplied_by_several_layers_at_once(
    dtype: torch.dtype, rows: int, width: int
) -> None:
    states = drawn(rows, width, dtype=dtype)
    weights = [drawn(size, width, dtype=dtype) for size in (40, 24, 7)]
    biases = [drawn(size, dtype=dtype) for size in (40, 24, 7)]
    parts = [F.linear(states, w, b) for w, b in zip(weights, biases, strict=True)]
    torch.testing.assert_close(
        multiply(states, weights, biases, TILING), torch.cat(parts, dim=-1), atol=1e-4, rtol=0.02
    )
    for count in (1, 2):
        parts = [F.linear(states, w) for w in weights[:count]]
        found = multiply(states, weights[:count], None, TILING)
        torch.testing.assert_close(found, torch.cat(parts, dim=-1), atol=1e-4, rtol=0.02)


@pytest.mark.parametrize("shares, width", [(2, 64), (3, 72), (4, 48)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shares_of_a_product_are_added_up_by_the_norm_behind_it(
    dtype: torch.dtype, shares: int, width: int
) -> None:
    states, weight = drawn(5, width, dtype=dtype), drawn(40, width, dtype=dtype)
    each = multiply(states, [weight], None, replace(TILING, shares=shares))
    assert each.shape == (shares, 5, 40) and each.dtype == torch.float32
    expected = F.linear(states, weight)
    torch.testing.assert_close(each.sum(0).to(dtype), expected, atol=1e-4, rtol=0.02)
    stream, scale = drawn(1, 5, 40, dtype=dtype), drawn(40, dtype=dtype)
    total = each[0]
    for share in each[1:]:
        total = total + share
    shared = Shares(each.view(shares, 1, 5, 40))
    assert torch.equal(stream + shared, stream + total.to(dtype))
    found = add_norm(stream, shared, scale, epsilon=1e-5)
    one_sum = add_norm(stream, total.to(dtype)[None], scale, epsilon=1e-5)
    assert all(map(torch.equal, found, one_sum))


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gated_product_rounds_as_four_operations_do(dtype: torch.dtype, rows: int) -> None:
    states, gates, ups = (drawn(n, 64, dtype=dtype) / 4 for n in (rows, 40, 40))
    found = multiply_gated(states, gates, ups, tiling=TILING, activation="silu")
    expected = F.silu(F.linear(states, gates)) * F.linear(states, ups)
    torch.testing.assert_close(
        found, expected, atol=1e-3 if dtype.itemsize == 2 else 1e-5, rtol=0.03
    )


def test_a_product_that_does_not_compile_leaves_all_to_the_library() -> None:
    def clock(run: Callable[[], object]) -> float:
        raise TritonError("does not compile")

    kit = TritonKit(clock=clock, device_type="cpu")
    layer = nn.Linear(2048, 1024, bias=False, dtype=torch.bfloat16)
    kit.linears.append(GpuLinears([layer], kit.tilings))
    kit.settle()
    assert not kit.tilings.chosen


def compiled(folder: Path, *options: str) -> list[dict[str, Any]]:
    """What `scripts/compile_kernels.py` says of each kernel."""
    script = Path(__file__).parents[2] / "scripts" / "compile_kernels.py"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    paths = [str(script.parents[1]), environment.get("PYTHONPATH", "")]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "TRITON_CACHE_DIR": str(folder)}
    report = folder / "report.jsonl"
    command = [sys.executable, str(script), *options, "--report", str(report)]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return [json.loads(line) for line in report.read_text().splitlines()]


@pytest.mark.slow
def test_a_gpu_that_lets_no_kernel_begin_early_has_the_others_compiled(tmp_path: Path) -> None:
    facts = compiled(tmp_path, "80", "--quick")
    assert "tree_kernel" in {own["name"] for own in facts}
    assert all(own["waits_first"] is None for own in facts)


@pytest.mark.parametrize(
    "options", [["--quick"], pytest.param([], marks=pytest.mark.slow)], ids=["quick", "all"]
)
def test_every_kernel_compiles_for_a_gpu(options: list[str], tmp_path: Path) -> None:
    facts = compiled(tmp_path, "90", *options)
    early = {"_multiply", "_multiply_gated", "_add_norm", "_gate", "_turn"}
    early |= {"tree_kernel", "merge_kernel"}
    assert {own["name"] for own in facts} == early | {
        *("bitwise_kernel", "merge_segments", "_write", "_commit"),
        *("_choose_kernel", "_best_part_kernel", "_gumbel_kernel", "_gumbel_of_tokens_kernel"),
        *("_sum_kernel", "_count_kernel", "_keep_kernel"),
    }
    assert {own["name"] for own in facts if own["waits_first"] is not None} == early
    for own in facts:
        name = own["name"]
        assert own["shared_bytes"] <= 227 * 1024, f"{own}: more than an H200 has"
        assert own["registers"] <= 255 and own["resident"] >= 1, own
        # What does not fit goes to memory: a little of it where a softcap or a window is asked for.
        assert own["stack_bytes"] <= (512 if name in ("tree_kernel", "bitwise_kernel") else 0), own
        assert own["waits_first"] is not False, f"{own} reads what may not be there yet"
        assert not own["are_serial"], f"{own}: no product begins before the last one has ended"
        assert not own["overwrites"], f"{own}: a product reads what is there no more"
        if name == "_turn":
            assert not own["is_fused"], f"{own}: the model's own rotation rounds each product"
        if name in ("_choose_kernel", "_gumbel_kernel", "_gumbel_of_tokens_kernel"):
            assert not own["may_fuse"], f"{own}: the noise of a place would hang on the compiler"
        if name == "_add_norm" and own["constants"]["BLOCK"] >= 4096:
            assert not own["narrow_loads"], f"{own}: shares of a product among them"
        if name.startswith("_multiply"):
            # Weights on their way while others are multiplied: what makes such a product quick.
            assert own["is_asynchronous"] and own["load_bits"] == 128, own
            assert (own["products"] == "none") == (own["constants"]["ROWS"] == 1), own
            assert "count" not in own["constants"], f"{own}: compiled for a number of rows"
        if name == "tree_kernel" and own["constants"]["BLOCK_D"] == 128:
            assert own["load_bits"] == 128, own
