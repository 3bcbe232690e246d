"""Kernels that fail, at the load or at a first call: something else computes, with one warning."""

import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import pretend
import pytest
import torch
from families import FAMILIES
from interpreted import IS_INTERPRETED, LAUNCHER
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

import mmspec
import mmspec.nucleus
from mmspec import noise
from mmspec.attention import bitwise, tail, tree
from mmspec.attention.setbacks import Setbacks
from mmspec.errors import BackendWarning, GraphWarning, ModelError
from mmspec.kernels import Kernels
from mmspec.kv import KVCache, slots
from mmspec.requests import Request
from mmspec.state import Prompt
from mmspec.target import triton_parts
from mmspec.target.kernels import skinny
from mmspec.target.tilings import Shape

PLACES = [noise.Place(7, 0, 3), noise.Place(7, 0, 4)]
ERRORS = [
    CompilationError("def kernel(): ...", None, "a builtin has other arguments"),
    PTXASError("Internal Triton PTX codegen error"),
    OutOfResources(300_000, 232_448, "shared memory"),
    subprocess.CalledProcessError(1, ["gcc", "launcher.c"]),
    AttributeError("module 'triton.language' has no attribute 'range'"),
    RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
]
NAMES = [
    *("_add_norm", "_turn", "_gate", "_multiply", "_multiply_gated", "tree_kernel", "merge_kernel"),
    *("_write", "_choose_kernel", "_best_part_kernel", "_sum_kernel"),
]
SAID = (BackendWarning, GraphWarning)
QUICK = ("_turn", "_write")


@contextmanager
def failing(name: str, error: Exception) -> Iterator[list[str]]:
    """Within it the kernel of this name raises the error; yields the names of those launched."""
    asked = list[str]()
    own = LAUNCHER.run

    def run(function: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(function.fn.__name__)
        if asked[-1] == name:
            raise error
        return own(function, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LAUNCHER, "run", run)
        yield asked


@pytest.fixture(autouse=True)
def nothing_failed_before(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Setbacks()
    monkeypatch.setattr(tree, "SETBACKS", made)
    monkeypatch.setattr(tail, "SETBACKS", made)
    for module, name in (
        *((noise, "_KERNELS"), (mmspec.nucleus, "_KERNELS")),
        *((slots, "KERNELS"), (bitwise, "_KERNELS")),
    ):
        own = getattr(module, name)
        monkeypatch.setattr(module, name, Kernels(own._name, own._does))
    monkeypatch.setattr("mmspec.kv.moves.KERNELS", slots.KERNELS)


def small_model() -> Any:
    model = FAMILIES["llama"].build(torch.float32)
    del model.model.layers[1:]
    model.config.num_hidden_layers = 1
    return model


def decoded(device: str) -> list[int]:
    """With a tree a step, of which nodes off the first path are kept, and top-p."""
    prompt = Prompt(torch.tensor([5, 6, 7, 8, 5, 6, 9, 7, 5, 6, 7, 8] * 4 + [5, 6]))
    request = Request(prompt, max_new_tokens=4, temperature=1.0, top_p=0.9, seed=3)
    overrides = ["drafter.name=prompt_lookup", "decode.controller=fixed"]
    engine = mmspec.load(small_model().to(device), overrides=overrides)
    return list(engine.generate(request, ignore_eos=True).tokens)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        *(
            pytest.param(name, error, marks=[] if name in QUICK else pytest.mark.slow)
            for name, error in zip(NAMES, cycle(ERRORS), strict=False)
        ),
        *(pytest.param("_turn", error, marks=pytest.mark.slow) for error in ERRORS),
    ],
    ids=lambda given: given if isinstance(given, str) else type(given).__name__,
)
def test_a_kernel_that_fails_costs_no_token(
    name: str,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if name.startswith("_multiply"):
        monkeypatch.setattr(triton_parts, "measured", all_by_tilings)
    expected = decoded("cpu")
    with pretend.device(), failing(name, error) as asked, warnings.catch_warnings(record=True) as w:
        warnings.simplefilter("always")
        assert decoded("cuda") == expected
    assert name in asked
    told = [str(one.message) for one in w if issubclass(one.category, SAID)]
    told += [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == (2 if name == "tree_kernel" else 1), told  # graphs need that one, too
    assert str(error).split("\n")[0][:20] in told[0] or "OutOfResources" in told[0]


def all_by_tilings(linears: Any, clock: Any) -> dict[tuple[Shape, int], skinny.Tiling]:
    """As if those had been measured to be the quickest."""
    shapes = {group.shape for group in linears}
    return {(shape, rows): skinny.Tiling(16, 16, 1, 1) for shape in shapes for rows in (1, 16, 64)}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_paths_are_moved_and_noise_is_made_without_their_kernels(error: Exception) -> None:
    states = torch.randn(1, 2, 5, 4)
    expected = [states[0, :, [0, 2, 4]].transpose(0, 1), noise.gumbel_at(PLACES, 9)]
    with pretend.device():
        cache = KVCache(1)
        row = cache.open(8)
        with cache.writing([row], [5]):
            cache.update(states.cuda(), states.cuda(), 0)
        with failing("_commit", error), pytest.warns(BackendWarning, match="KV cache"):
            cache.commit({row: [0, 2, 4]})
        (pair,) = cache.read(row, 0, 3)
        with failing("_gumbel_kernel", error), pytest.warns(BackendWarning, match="noise"):
            found = noise.gumbel_at(PLACES, 9, device="cuda")
        assert torch.equal(pair[0].cpu(), expected[0])
        assert torch.equal(found.cpu(), expected[1])


@pytest.mark.parametrize("name", ["_turn", "_write"])
@pytest.mark.parametrize(
    "text",
    ["CUDA error: an illegal memory access was encountered", "Triton Error [CUDA]: out of memory"],
)
def test_a_lost_device_and_used_up_memory_are_raised(name: str, text: str) -> None:
    with (
        pretend.device(),
        failing(name, RuntimeError(text)),
        pytest.raises(RuntimeError, match=re.escape(text)),
    ):
        decoded("cuda")


def test_a_triton_with_other_names_is_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What it lacks is missed when the kernels' modules are imported."""
    for name in ("mmspec.target.triton_kit", "mmspec.kv.kernels", "mmspec.noise_kernels"):
        monkeypatch.setitem(sys.modules, name, None)  # an import raises
    expected = decoded("cpu")
    with pretend.device(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert decoded("cuda") == expected
    told = [str(one.message) for one in caught if one.category is BackendWarning]
    assert [text.split(" failed")[0] for text in told] == [
        "mmspec's kernels for writes to the KV cache", "mmspec's kernels for noise",
    ]  # fmt: skip
    assert "triton_kit" in caplog.text


def test_bitwise_mode_is_refused_where_its_kernel_fails() -> None:
    overrides = ["drafter.name=none", "decode.exactness=bitwise", "decode.max_nodes=3"]
    with (
        pretend.device(),
        failing("bitwise_kernel", ERRORS[0]),
        pytest.raises(ModelError, match="fails in bitwise mode"),
    ):
        mmspec.load(small_model().to("cuda"), overrides=[*overrides, "decode.max_rows=1"])


@pytest.mark.skipif(not IS_INTERPRETED, reason="compiled, they can")
def test_kernels_that_cannot_begin_early_begin_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The interpreter knows no early begin: at the probe they fail, and are kept without."""
    monkeypatch.setattr(triton_parts, "can_begin_early", lambda device: True)
    monkeypatch.setattr(triton_parts, "pays", lambda *told: True)
    with pretend.device(), warnings.catch_warnings():
        warnings.simplefilter("ignore", BackendWarning)  # attention, which is asked first
        engine = mmspec.load(small_model().to("cuda"), overrides=["drafter.name=none"])
        blocks = engine.target.attachments.blocks
    assert blocks is not None and blocks.tower is not None
    assert not blocks.tower.kit.tilings.is_early
    assert "fewer of them are used" in caplog.text


@pytest.mark.skipif(IS_INTERPRETED, reason="the interpreter knows no early begin")
def test_kernels_that_begin_early_cost_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_parts, "can_begin_early", lambda device: True)
    monkeypatch.setattr(triton_parts, "pays", lambda *told: True)
    monkeypatch.setattr(triton_parts, "measured", all_by_tilings)
    with pretend.device():
        engine = mmspec.load(small_model().to("cuda"), overrides=["drafter.name=none"])
        blocks = engine.target.attachments.blocks
        assert blocks is not None and blocks.tower is not None and blocks.tower.kit.tilings.is_early
        found = decoded("cuda")
    assert found == decoded("cpu")
