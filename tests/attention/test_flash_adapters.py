"""What is asked of the FlashAttention packages is what they take, in the versions that are taken.

`flash_standins` have the interface that the packages' own files have; where a package is installed
it is held against that.
"""

import sys
from collections.abc import Callable
from inspect import signature
from types import ModuleType
from typing import Any

import flash_standins
import pytest
import torch

from mmspec.attention.conformance import Case, build
from mmspec.attention.flash_attn_2 import FlashAttention2
from mmspec.attention.flash_attn_3 import FlashAttention3
from mmspec.attention.flash_attn_4 import FlashAttention4
from mmspec.attention.installed import first_installed
from mmspec.attention.rung import Rung

CPU = torch.device("cpu")
KVCACHE, VARLEN = "flash_attn_with_kvcache", "flash_attn_varlen_func"
Adapter = type[FlashAttention2] | type[FlashAttention3] | type[FlashAttention4]
ADAPTERS: list[tuple[Adapter, Callable[..., Any]]] = [
    (FlashAttention2, flash_standins.flash_attn_2_with_kvcache),
    (FlashAttention3, flash_standins.flash_attn_3_with_kvcache),
    (FlashAttention4, flash_standins.flash_attn_4_varlen_func),
]
LENGTHS = {
    "one row": Case(),
    "ragged": Case(committed=(40, 0, 7), nodes=(5, 2, 3)),
    "a graph's": Case(committed=(40, 7), nodes=(5, 3), is_prepared=True),
    "without group": Case(group=1),
}


def package(monkeypatch: pytest.MonkeyPatch, name: str, function: Callable[..., Any]) -> None:
    """Makes `name` an installed module that has the function by its public name."""
    outer, _, _ = name.rpartition(".")
    if outer:
        monkeypatch.setitem(sys.modules, outer, ModuleType(outer))
    module = ModuleType(name)
    setattr(module, VARLEN if "cute" in name else KVCACHE, function)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize(("adapter", "standin"), ADAPTERS)
def test_no_more_and_no_less_is_passed_than_was_looked_for(
    adapter: Adapter, standin: Callable[..., Any]
) -> None:
    passed: set[str] = set()

    def recorded(*operands: Any, **options: Any) -> Any:
        assert len(operands) == 3
        passed.update(options)
        return standin(*operands, **options)

    rung = adapter(recorded, device="cpu")
    for case in LENGTHS.values():
        inputs = build(case, dtype=torch.bfloat16, device=CPU)
        operands = (inputs.query, inputs.keys, inputs.values)
        rung.attend(*operands, call=inputs.call, rule=inputs.rule)
    assert passed == set(adapter.arguments)
    assert passed <= set(signature(standin).parameters)


# Older versions, by the arguments that they take.
def kvcache_of_2_5(
    q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None,
    cache_batch_idx=None, block_table=None, softmax_scale=None, causal=False,
    window_size=(-1, -1), rotary_interleaved=True, alibi_slopes=None, num_splits=0,
):  # type: ignore[no-untyped-def]  # fmt: skip
    raise AssertionError("it is not to be called")


def varlen_of_4_within_2_8(
    q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, seqused_q=None, seqused_k=None, page_table=None,
    softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None, softcap=0.0,
    pack_gqa=None,
):  # type: ignore[no-untyped-def]  # fmt: skip
    raise AssertionError("it is not to be called")


@pytest.mark.parametrize(
    ("adapter", "name", "old", "lacking"),
    [
        (
            FlashAttention2,
            "flash_attn",
            kvcache_of_2_5,
            "cache_leftpad, return_softmax_lse, softcap",
        ),
        (
            FlashAttention4,
            "flash_attn.cute",
            varlen_of_4_within_2_8,
            "max_seqlen_k, num_splits, return_lse",
        ),
    ],
)
def test_a_version_without_an_argument_is_missing_and_says_which(
    monkeypatch: pytest.MonkeyPatch,
    adapter: Adapter,
    name: str,
    old: Callable[..., Any],
    lacking: str,
) -> None:
    package(monkeypatch, name, old)
    told = adapter().missing()
    assert f"{name}: this version's" in told and told.endswith(f"has no {lacking})"), told


@pytest.mark.parametrize(
    ("adapter", "name", "standin"),
    [
        (FlashAttention2, "flash_attn", flash_standins.flash_attn_2_with_kvcache),
        (FlashAttention3, "flash_attn_interface", flash_standins.flash_attn_3_with_kvcache),
        (FlashAttention3, "fa3_fwd_interface", flash_standins.flash_attn_3_with_kvcache),
        (FlashAttention4, "flash_attn.cute", flash_standins.flash_attn_4_varlen_func),
    ],
)
def test_a_package_is_found_by_its_name_and_arguments(
    monkeypatch: pytest.MonkeyPatch, adapter: Adapter, name: str, standin: Callable[..., Any]
) -> None:
    package(monkeypatch, name, standin)
    rung = adapter(device="cpu")
    assert not rung.missing()
    assert (rung.installed.module, rung.installed.function) == (name, standin)


def test_the_wheel_without_float16_is_not_given_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for name, takes_half in (("fa3_fwd_interface", False), ("flash_attn_interface", True)):
        package(monkeypatch, name, flash_standins.flash_attn_3_with_kvcache)
        rung: Rung = FlashAttention3(device="cpu")
        for dtype, expected in ((torch.bfloat16, True), (torch.float16, takes_half)):
            inputs = build(Case(), dtype=dtype, device=CPU)
            operands = (inputs.query, inputs.keys, inputs.values)
            assert rung.can_attend(*operands, rule=inputs.rule) is expected


@pytest.mark.parametrize(("major", "splits"), [(9, 1), (10, 0), (11, 0), (12, 1)])
def test_flash_attn_4_shares_out_a_rows_keys_where_it_can(
    monkeypatch: pytest.MonkeyPatch, major: int, splits: int
) -> None:
    asked: list[int] = []

    def standin(*operands: Any, num_splits: int, **options: Any) -> Any:
        asked.append(num_splits)
        return flash_standins.flash_attn_4_varlen_func(*operands, **options)

    monkeypatch.setattr(FlashAttention4, "_major", lambda self, device: major)
    inputs = build(Case(), dtype=torch.bfloat16, device=CPU)
    operands = (inputs.query, inputs.keys, inputs.values)
    FlashAttention4(standin, device="cpu").attend(*operands, call=inputs.call, rule=inputs.rule)
    assert asked == [splits]


@pytest.mark.parametrize(
    ("modules", "name", "standin"),
    [
        (["flash_attn"], KVCACHE, flash_standins.flash_attn_2_with_kvcache),
        (["fa3_fwd_interface"], KVCACHE, flash_standins.flash_attn_3_with_kvcache),
        (["flash_attn.cute"], VARLEN, flash_standins.flash_attn_4_varlen_func),
    ],
)
def test_an_installed_package_has_the_interface_of_its_stand_in(
    modules: list[str], name: str, standin: Callable[..., Any]
) -> None:
    found = first_installed(modules, name, arguments=(), packages=modules[0])
    if found.missing:
        pytest.skip(found.missing)
    own, ours = (signature(f).parameters for f in (found.function, standin))
    assert list(own) == list(ours)
    assert {n: p.default for n, p in own.items()} == {n: p.default for n, p in ours.items()}
