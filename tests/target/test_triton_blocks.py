"""Blocks of kernels: the numbers of the model's own forward, in a handful of launches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from families import FAMILIES
from interpreted import DEVICE, LAUNCHER
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

import mmspec
from mmspec.requests import Request
from mmspec.state import Prompt
from mmspec.target import Target, blocks
from mmspec.target.quantised import QuantisedLinears
from mmspec.target.stacking import joint_layer, stack_weights
from mmspec.target.tower import TextTower, TowerOutput, quick_blocks
from mmspec.tree import TokenTree

pytest.importorskip("triton")

from triton.runtime.errors import OutOfResources

from mmspec.target import gpu_linears
from mmspec.target.kernels.skinny import Tiling
from mmspec.target.tilings import Shape, Tilings
from mmspec.target.triton_parts import TritonKit, TritonParts

# Node 0 with two children.
FORK = TokenTree((60, 61, 62), (-1, 0, 0), (1.0,) * 3, ("", *"aa"))
KNOWN = ["llama", "mistral_sliding", "qwen2", "qwen3", "qwen2_5_vl", "qwen3_vl"]
TILING = Tiling(outputs=64, inputs=32, warps=4, stages=2)


class Skinny(Tilings):
    """One tiling for whatever can be tiled."""

    def __init__(self) -> None:
        super().__init__({})

    def find(self, shape: Shape, rows: int) -> Tiling | None:
        return TILING


class Sharing(Skinny):
    """The same, with products in shares where a norm adds them up."""

    def find(self, shape: Shape, rows: int) -> Tiling | None:
        return replace(TILING, shares=3) if shape.is_added else TILING


def score(target: Target, taps: tuple[int, ...] = ()) -> Any:
    """A tree over a short prefix beside node 0 alone over a shorter one."""
    cache = target.new_cache()
    placements = [
        target.prefill(Prompt(torch.arange(40, 40 + length)), cache, cache.open(16)).placement
        for length in (7, 4)
    ]
    return target.score([FORK, TokenTree.root(60)], cache, placements, taps=taps)


def built(name: str, dtype: torch.dtype) -> PreTrainedModel:
    return FAMILIES[name].build(dtype).to(DEVICE)


def fused(model: PreTrainedModel, tilings: Tilings | None = None) -> Target:
    kit = TritonKit(tilings, device_type=DEVICE)
    return Target(model, attention="tree", blocks=quick_blocks(model, kit=kit))


def error(found: Any, expected: Any) -> float:
    """The largest difference, in the logits' standard deviations."""
    pairs = [(a.logits.double(), b.logits.double()) for a, b in zip(found, expected, strict=True)]
    return max(float((a - b).abs().max() / b.std()) for a, b in pairs)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What ran, since the test began: blocks, and towers."""
    seen: list[str] = []
    block, tower = blocks.Block.run, TextTower.__call__

    def counted_block(self: Any, *args: Any) -> Any:
        seen.append("block")
        return block(self, *args)

    def counted_tower(self: Any, **inputs: Any) -> TowerOutput:
        seen.append("tower")
        return tower(self, **inputs)

    monkeypatch.setattr(blocks.Block, "run", counted_block)
    monkeypatch.setattr(TextTower, "__call__", counted_tower)
    return seen


@pytest.mark.parametrize(
    "name, tilings", [*((name, None) for name in KNOWN), ("llama", Skinny()), ("qwen2", Skinny())]
)
def test_a_tower_of_kernels_says_what_the_model_says(
    name: str, tilings: Tilings | None, ran: list[str]
) -> None:
    model = built(name, torch.float32)
    found, expected = score(fused(model, tilings)), score(Target(model, attention="tree"))
    assert ran == ["tower", *["block"] * len(model.get_decoder().layers)]
    assert error(found, expected) < 1e-5


@pytest.mark.parametrize("name", ["llama", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_in_bfloat16_it_is_as_near_to_the_truth_as_the_model(name: str) -> None:
    low = built(name, torch.bfloat16)
    exact = built(name, torch.float64).requires_grad_(False)
    for high, rounded in zip(exact.parameters(), low.parameters(), strict=True):
        high.copy_(rounded)
    truth = score(Target(exact, attention="tree"))
    own = error(score(Target(low, attention="tree")), truth)
    assert own > 1e-3, "bfloat16 is seen in the logits"
    for tilings in (None, Skinny()):
        assert error(score(fused(low, tilings)), truth) <= 1.5 * own


def test_hidden_states_are_the_models_own(ran: list[str]) -> None:
    model = built("qwen3_vl", torch.float32)
    taps = (0, 1, 3)  # 3: after the final norm
    found, expected = score(fused(model), taps), score(Target(model, attention="tree"), taps)
    assert ran[0] == "tower"
    for made, own in zip(found, expected, strict=True):
        for tap in taps:
            torch.testing.assert_close(made.hidden[tap], own.hidden[tap], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_tower_adds_up_shares_where_hidden_states_are_asked_for_too(name: str) -> None:
    model = built(name, torch.float32)
    kit = TritonKit(Sharing(), device_type=DEVICE)
    blocks = quick_blocks(model, kit=kit)
    taps = (0, 1, model.config.num_hidden_layers)
    found = score(Target(model, attention="tree", blocks=blocks), taps)
    expected = score(Target(model, attention="tree"), taps)
    assert error(found, expected) < 1e-4
    for own, theirs in zip(found, expected, strict=True):
        for tap in taps:
            torch.testing.assert_close(own.hidden[tap], theirs.hidden[tap], atol=1e-4, rtol=1e-4)


def test_what_others_have_a_hand_in_is_left_to_the_model(ran: list[str]) -> None:
    model = built("qwen2", torch.float32)
    target = fused(model)
    first, second = model.get_decoder().layers
    seen: list[object] = []
    first.mlp.register_forward_hook(lambda *_: seen.append("hook"))
    expected = score(Target(model, attention="tree"))
    assert error(score(target), expected) < 1e-5
    assert ran == ["block"] and len(seen) > 0, "the second block alone, in the model's own forward"
    own = second.self_attn.o_proj.forward
    second.self_attn.o_proj.forward = lambda states: 2 * own(states)
    ran.clear()
    assert error(score(target), expected) > 1e-2
    assert not ran


@pytest.mark.skipif(DEVICE == "cuda", reason="what quantises on a GPU differs by machine")
def test_quantised_draft_weights_are_called_within_the_tower(ran: list[str]) -> None:
    model = built("llama", torch.float32)
    stack_weights(model)
    copy = QuantisedLinears(model, "int8", min_weights=1)
    expected = score(Target(model, attention="tree").variant(copy))
    assert error(score(Target(model, attention="tree")), expected) > 1e-3
    assert error(score(fused(model, Skinny()).variant(copy)), expected) < 1e-4
    assert ran[0] == "tower"


def test_nodes_above_the_tilings_are_the_librarys_product() -> None:
    model = built("llama", torch.float32)
    projections = [model.get_decoder().layers[0].self_attn.o_proj]
    shape = Shape.of(projections)
    assert shape == Shape((64,), 64, torch.float32, False, False)
    tilings = Tilings({(shape, 16): TILING})
    assert [tilings.find(shape, rows) for rows in (0, 1, 2, 16, 17, 65)] == [
        *(None, None, TILING, TILING, None, None)
    ]


def test_weights_that_are_no_plain_ones_have_no_shape() -> None:
    model = built("qwen2", torch.float32)
    layer = model.get_decoder().layers[0]
    attention, mlp = layer.self_attn, layer.mlp
    assert Shape.of([attention.q_proj, attention.o_proj]) is None, "a bias here, none there"
    assert Shape.of([mlp.gate_proj, mlp.up_proj], is_gated=True) is not None
    mlp.up_proj.forward = mlp.up_proj.forward
    assert Shape.of([mlp.gate_proj, mlp.up_proj], is_gated=True) is None
    assert Shape.of([built("llama", torch.float64).lm_head]) is None


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_stacked_weights_are_the_same_parameters_and_one_product(name: str) -> None:
    model = built(name, torch.float32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    named = {key: id(parameter) for key, parameter in model.named_parameters()}
    expected = score(Target(model, attention="tree"))
    attention, mlp = (getattr(model.get_decoder().layers[0], n) for n in ("self_attn", "mlp"))
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    assert joint_layer(projections) is None
    stack_weights(model)
    assert {key: id(parameter) for key, parameter in model.named_parameters()} == named
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    for layers in (projections, [mlp.gate_proj, mlp.up_proj]):
        joint = joint_layer(layers)
        assert joint is not None
        assert torch.equal(joint.weight, torch.cat([layer.weight for layer in layers]))
        assert (joint.bias is None) == (layers[0].bias is None)
    assert error(score(fused(model)), expected) < 1e-5
    with torch.no_grad():  # a weight that is written to, as an optimiser or a merge does it
        attention.k_proj.weight.mul_(2)
    changed = score(Target(model, attention="tree"))
    assert error(changed, expected) > 1e-2
    assert error(score(fused(model)), changed) < 1e-5
    attention.k_proj.weight = torch.nn.Parameter(attention.k_proj.weight.detach().clone())
    assert joint_layer(projections) is None


def test_stacked_weights_are_saved_and_loaded(tmp_path: Path) -> None:
    model = built("qwen2", torch.float32)
    stack_weights(model)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    for key, value in model.state_dict().items():
        assert torch.equal(value.cpu(), again.state_dict()[key]), key


def test_an_engine_says_the_same_by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: list[int] = []
    own = TritonParts.queries

    def counted(self: Any, states: Tensor, *args: Any) -> Any:
        nodes.append(states.shape[1])
        return own(self, states, *args)

    monkeypatch.setattr(TritonParts, "queries", counted)
    model = built("qwen2", torch.float64)
    prompt = Prompt(torch.arange(3, 112))  # whatever comes next was there before
    request = Request(prompt, max_new_tokens=5)
    texts = []
    for kit in (None, TritonKit(device_type=DEVICE)):
        overrides = [
            *("drafter.name=prompt_lookup", "decode.controller=fixed"),
            *("drafter.prompt_lookup.min_match=1", "drafter.prompt_lookup.max_depth=2"),
        ]
        engine = mmspec.load(model, overrides=overrides)
        if kit is not None:
            engine.target.attachments.blocks = quick_blocks(model, kit=kit)
        texts.append(engine.generate(request, ignore_eos=True).tokens)
    assert texts[0] == texts[1] and len(texts[0]) == 5
    assert max(nodes) > 1, "no tree was scored by kernels"


def test_the_quickest_tiling_is_taken_where_it_beats_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_linears, "_LEAST_WEIGHTS", 64 * 64)
    ways: list[Tiling | None] = []
    own = gpu_linears.GpuLinears.run

    def told(self: Any, states: Tensor, tiling: Tiling | None) -> Any:
        ways.append(tiling)
        return own(self, states, None)

    def clock(run: Callable[[], object]) -> float:
        with monkeypatch.context() as patched:
            patched.setattr(gpu_linears.GpuLinears, "run", told)
            patched.setattr(gpu_linears.GpuLinears, "run_added", lambda *call: told(*call)[0])
            ways.clear()
            run()
        assert len(set(ways)) == 1
        if ways[0] is None:
            return 1.0 * len(ways)
        if ways[0].outputs == 16:
            raise OutOfResources(2, 1, "shared memory")
        return (0.98 if ways[0].inputs <= 128 else 0.5) * len(ways)

    model = built("llama", torch.bfloat16)
    kit = TritonKit(clock=clock, device_type=DEVICE)
    target = Target(model, attention="tree", blocks=quick_blocks(model, kit=kit))
    chosen = {(shape.outs, rows): tiling for (shape, rows), tiling in kit.tilings.chosen.items()}
    # By outputs: q, k and v; o; gate and up; down, as o; the head. At 64 rows nothing is quicker
    # by enough.
    expected = {(128,), (64,), (192,), (112,)}
    assert {(sum(outs),) for outs, _ in chosen} == expected
    assert {rows for _, rows in chosen} == {1, 16}
    assert chosen[(64,), 16] == Tiling(32, 256, 4, 3)
    assert chosen[(64,), 1] == Tiling(8, 512, 4, 4)
    assert error(score(target), score(Target(model, attention="tree"))) < 0.1


@pytest.mark.parametrize("error", [RuntimeError("no graph can be captured"), AssertionError()])
def test_where_tilings_cannot_be_measured_the_library_multiplies(
    error: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler may raise anything, and say nothing."""
    monkeypatch.setattr(gpu_linears, "_LEAST_WEIGHTS", 1)

    def clock(run: Callable[[], object]) -> float:
        raise error

    kit = TritonKit(clock=clock, device_type=DEVICE)
    assert quick_blocks(built("llama", torch.bfloat16), kit=kit) is not None
    assert not kit.tilings.chosen
    assert (str(error) or "AssertionError") in caplog.text


@pytest.mark.parametrize("text", ["an illegal memory access was encountered", "out of memory"])
def test_a_gpu_that_is_lost_or_full_while_tilings_are_measured_is_told(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_linears, "_LEAST_WEIGHTS", 1)

    def clock(run: Callable[[], object]) -> float:
        raise RuntimeError(f"CUDA error: {text}")

    kit = TritonKit(clock=clock, device_type=DEVICE)
    with pytest.raises(RuntimeError, match=text):
        quick_blocks(built("llama", torch.bfloat16), kit=kit)


@pytest.mark.gpu(real=True)
def test_on_a_gpu_blocks_are_of_kernels_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_linears, "_LEAST_WEIGHTS", 1)
    model = built("llama", torch.bfloat16)
    made = quick_blocks(model)
    assert made is not None and made.tower is not None
    assert isinstance(made.tower.kit, TritonKit)
    found = score(Target(model, attention="tree", blocks=made))
    assert error(found, score(Target(model, attention="tree"))) < 0.1


# Launches


class Launches(TorchDispatchMode):
    """Counts what would be a kernel: Triton's launches, and torch's operations that compute."""

    _FREE = frozenset(  # views, and memory that is not written
        {
            *("view", "_unsafe_view", "transpose", "t", "split", "split_with_sizes", "expand"),
            *("unsqueeze", "slice", "select", "detach", "empty", "new_empty", "empty_like"),
            *("alias", "as_strided", "permute", "unflatten", "squeeze"),
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if not self._inside and name not in self._FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def counted(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        own = LAUNCHER.run

        def run(function: Any, *args: Any, **kwargs: Any) -> Any:
            self.names.append(f"triton {function.fn.__name__}")
            self._inside = True
            try:
                return own(function, *args, **kwargs)
            finally:
                self._inside = False

        with monkeypatch.context() as patched, self:
            patched.setattr(LAUNCHER, "run", run)
            yield


@pytest.mark.skipif(DEVICE == "cuda", reason="counts launches on a CPU")
@pytest.mark.parametrize(
    "name, tilings, most",
    [
        ("llama", Skinny(), 7),
        ("llama", None, 11),
        ("llama", "stacked", 8),
        ("qwen2", Skinny(), 7),
        ("qwen3", Skinny(), 7),
    ],
    ids=["skinny", "library", "stacked", "bias", "head norms"],
)
def test_a_block_is_a_handful_of_launches_beside_its_attention(
    name: str,
    tilings: Tilings | Literal["stacked"] | None,
    most: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def attend(query: Tensor, *_: object) -> Tensor:
        return query.transpose(1, 2)

    monkeypatch.setattr(blocks, "attend_layer", attend)
    model = built(name, torch.float32)
    if tilings == "stacked":
        stack_weights(model)
        tilings = None
    target = fused(model, tilings)
    launches = Launches()
    run = blocks.Block.run

    def counted(self: Any, *args: Any) -> Any:
        args[3].tensors(torch.device(DEVICE))  # made once for all layers
        with launches.counted(monkeypatch):
            return run(self, *args)

    monkeypatch.setattr(blocks.Block, "run", counted)
    score(target)
    layers = len(model.get_decoder().layers)
    shown = "\n".join(launches.names)
    assert "triton _add_norm" in launches.names, shown
    assert len(launches.names) <= most * layers, shown
