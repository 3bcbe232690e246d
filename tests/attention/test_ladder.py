"""The ladder: which backend is asked, and what a user is told."""

import ast
from pathlib import Path
from typing import Any

import interpreted
import pytest
import torch
from flash_standins import flash_attn_3_with_kvcache

from mmspec.attention import LayerRule, Reach, tree_attention
from mmspec.attention import ladder as ladder_module
from mmspec.attention.conformance import CASES, build
from mmspec.attention.flash_attn_3 import FlashAttention3
from mmspec.attention.installed import first_installed
from mmspec.attention.ladder import CUDA_ORDERS, RUNGS, check_backend, rungs_for
from mmspec.errors import ConfigError

assert interpreted
CPU = torch.device("cpu")


def chosen(backend: str = "auto", *, is_prepared: bool = False, **changes: Any) -> str:
    inputs = build(CASES[0], dtype=torch.float32, device=CPU)
    inputs.call.backend = backend
    if is_prepared:
        inputs.call.prepared = inputs.call.tensors(CPU)
    rule = LayerRule(Reach(), 0.1, **changes)
    rungs = rungs_for(inputs.query, inputs.keys, inputs.values, call=inputs.call, rule=rule)
    return next(rungs).name


def test_on_a_cpu_the_order_is_that_of_before() -> None:
    assert chosen() == "flash_cpu"
    assert chosen(softcap=2.0) == "matmul"


def test_a_named_backend_goes_first_and_others_take_what_it_declines() -> None:
    assert chosen("sdpa") == "sdpa"
    assert chosen("sdpa", softcap=2.0) == "matmul"
    assert chosen("triton") == "triton", "by the interpreter"
    assert chosen("torch_flash") == "flash_cpu", "not on a CPU"


def test_a_graph_gets_a_backend_that_reads_lengths_on_the_device() -> None:
    assert chosen("triton", is_prepared=True) == "triton"
    with pytest.raises(RuntimeError, match="no attention backend takes a captured call"):
        chosen("sdpa", is_prepared=True)


def test_orders_name_backends_and_end_with_one_that_takes_all() -> None:
    for order in CUDA_ORDERS:
        assert set(order.rungs) <= set(RUNGS) and order.rungs[-1] == "matmul"
    for major in (7, 8, 9, 10, 12):
        for pairs in (1, 64, 65, 10_000):
            fitting = [
                order
                for order in CUDA_ORDERS
                if major in order.majors and (order.pairs is None or pairs <= order.pairs)
            ]
            assert fitting, (major, pairs)


def test_the_named_backend_computes_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    rung = FlashAttention3(flash_attn_3_with_kvcache, device="cpu")
    monkeypatch.setitem(ladder_module.RUNGS, "flash_attn_3", rung)
    inputs = build(CASES[0], dtype=torch.bfloat16, device=CPU)
    operands = (inputs.query, inputs.keys, inputs.values)
    auto = tree_attention(*operands, call=inputs.call, rule=inputs.rule)
    inputs.call.backend = "flash_attn_3"
    named = tree_attention(*operands, call=inputs.call, rule=inputs.rule)
    assert not torch.equal(auto, named)
    assert torch.allclose(auto.float(), named.float(), atol=0.02)


def test_an_unknown_backend_is_an_error_that_names_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"'flashy': expected auto or one of .*available here: .*"
    ):
        check_backend("flashy")


def test_a_missing_package_is_an_error_that_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"flash_attn_4.*needs the package flash-attn-4 .*auto"):
        check_backend("flash_attn_4")


@pytest.mark.parametrize("name", ["auto", "sdpa", "matmul", "flash_cpu"])
def test_a_backend_that_is_there_is_taken(name: str) -> None:
    assert check_backend(name) == name


def test_the_first_module_that_has_the_function_is_taken() -> None:
    found = first_installed(["no_such_module", "math"], "sqrt", arguments=(), packages="math")
    assert (found.missing, found.module, found.function(4.0)) == ("", "math", 2.0)
    lacking = first_installed(["math"], "flash", arguments=(), packages="flash-math")
    assert lacking.missing.startswith("the package flash-math (math: AttributeError")


def test_packages_with_kernels_are_imported_by_a_call_alone() -> None:
    heavy = ("triton", "flash_attn", "fa3_fwd")
    for path in Path(ladder_module.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert not name.startswith(heavy), f"{path.name} imports {name}"
                assert "tree_kernel" not in name and "merge_kernel" not in name, path.name
