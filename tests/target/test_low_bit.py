"""Quantised draft weights: near the target's while attached, and without a trace afterwards."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import Tensor, nn
from transformers.utils import is_peft_available

from mmspec.errors import ConfigError, ModelError
from mmspec.kv import KVCache
from mmspec.state import Placement, Prompt
from mmspec.target import Target, lowbit
from mmspec.target.fp8 import ScaledFp8
from mmspec.target.linears import Linears
from mmspec.target.lowbit import DynamicInt8, WeightInt4, WeightInt8, packer
from mmspec.target.lowbit_layers import LowBitLayers
from mmspec.target.probe import probe
from mmspec.target.projections import Projections
from mmspec.target.quantised import QuantisedLinears
from mmspec.target.skipping import SkippedLayers, decoder_layers
from mmspec.target.tower import quick_blocks
from mmspec.tree import TokenTree

FIVE = TokenTree((60, 61, 62, 63, 64), (-1, 0, 0, 1, 1), (1.0,) * 5, ("", *"aaaa"))
needs_peft = pytest.mark.skipif(not is_peft_available(), reason="needs peft (extra: lora)")


def prefilled(target: Target) -> tuple[KVCache, Placement]:
    cache = target.new_cache()
    return cache, target.prefill(Prompt(torch.arange(30, 42)), cache, cache.open(20)).placement


def logits(target: Target) -> Tensor:
    cache, placement = prefilled(target)
    return target.score([FIVE], cache, [placement])[0].logits


def traces(model: Any) -> list[Any]:
    modules = list(model.modules())
    return [
        [sorted(module.__dict__) for module in modules],
        [(id(p), p._version, p.dtype) for p in model.parameters()],
    ]


@pytest.mark.parametrize(
    "kind, tolerance",
    [(DynamicInt8, 0.02), (WeightInt8, 0.02), (WeightInt4, 0.15), (ScaledFp8, 0.06)],
)
def test_a_packed_layer_is_near_its_weight(kind: Any, tolerance: float) -> None:
    weight, rows = torch.randn(96, 128), torch.randn(3, 128)
    try:
        packed = kind(weight)
        got = packed(rows)
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        pytest.skip(f"torch {torch.__version__} here has no such kernel: {error}")
    expected = rows @ weight.T
    assert (got - expected).norm() / expected.norm() < tolerance
    assert packed.num_bytes < weight.nbytes / 3
    assert packed(rows.double()).dtype == torch.float64


def test_int4_levels_are_exact_where_sixteen_levels_suffice() -> None:
    """Weights that are 16 levels of one scale a group come through unchanged."""
    levels = torch.arange(16.0).repeat(32 * 64 // 16).view(32, 64)
    weight = (levels - 8) * 0.25
    got = WeightInt4(weight)(torch.eye(64)[:4])
    assert torch.equal(got, weight.T[:4])


def test_fp8_with_a_scale_a_row_or_one_for_all_is_the_rounded_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside the same product of the rounded numbers in float64, whichever kernel there is."""
    weight, rows = torch.randn(48, 64) * torch.logspace(-3, 3, 48)[:, None], torch.randn(5, 64)
    packed = ScaledFp8(weight)
    rounded = [
        (t / s).clamp(-448, 448).to(torch.float8_e4m3fn).double() * s
        for t in (weight, rows)
        for s in [t.abs().amax(dim=1, keepdim=True) / 448]
    ]
    expected = rounded[1] @ rounded[0].T
    for scales_rows in (packed._scales_rows, False):
        monkeypatch.setattr(packed, "_scales_rows", scales_rows)
        error = (packed(rows).double() - expected).abs() / expected.abs().amax(dim=0)
        assert error.max() < 2**-7  # the product comes in bfloat16
    assert torch.equal(packed(torch.zeros(1, 64)), torch.zeros(1, 48))


def test_a_kernel_of_other_numbers_is_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that counts its levels or packs its bytes otherwise would give."""

    class Transposed(ScaledFp8):
        def __init__(self, weight: Tensor) -> None:
            super().__init__(weight.flip(1))

    monkeypatch.setitem(lowbit._LADDER, "fp8", (Transposed,))
    with pytest.raises(ModelError, match=r"Transposed: its product is off by 1\.\d.*torchao_fp8"):
        packer("fp8", torch.device("cpu"))


def test_without_torchao_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    for bits in ("torchao_int4", "torchao_fp8"):
        with pytest.raises(ModelError, match=r"pip install mmspec\[quant\].*weights=same"):
            packer(bits, torch.device("cpu"))  # type: ignore[arg-type]


class Halves(Tensor):
    """A packed weight with torchao's interface: bytes that it counts, a product of its own."""

    tensor_data_names = ("qdata", "scale")

    @property
    def qdata(self) -> Tensor:
        return self.as_subclass(Tensor).half()

    @property
    def scale(self) -> Tensor:
        return torch.ones(1)


def test_torchao_packs_a_copy_and_is_asked_for_what_torch_can_multiply(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def config(name: str) -> Any:
        return lambda **options: (name, options)

    def quantize_(layer: nn.Linear, chosen: Any) -> None:
        asked.append(chosen)
        layer.weight = nn.Parameter(layer.weight.data.as_subclass(Halves), requires_grad=False)

    names = ("Int4WeightOnlyConfig", "Float8WeightOnlyConfig")
    stand_in = SimpleNamespace(quantize_=quantize_, **{name: config(name) for name in names})
    monkeypatch.setitem(sys.modules, "torchao", SimpleNamespace(quantization=stand_in))
    monkeypatch.setitem(sys.modules, "torchao.quantization", stand_in)
    model = FAMILIES["llama"].build(torch.float32)
    target = Target(model)
    before, clean = logits(target), traces(model)
    parts = model.get_decoder().modules()
    decoder_linears = [part for part in parts if isinstance(part, nn.Linear)]
    for bits in ("torchao_int4", "torchao_fp8"):
        quantised = QuantisedLinears(model, bits, with_head=False, min_weights=1)  # type: ignore[arg-type]
        num_copies = 2 * 4  # of two layers: q with k and v, o, gate with up, down
        full_bytes = sum(layer.weight.nbytes for layer in decoder_linears)
        assert quantised.num_bytes == full_bytes // 2 + 4 * num_copies
        drafted = logits(target.variant(quantised))
        assert 0 < (drafted - before).norm() / before.norm() < 0.05
    assert asked[0] == (
        "Int4WeightOnlyConfig",
        {"group_size": 32, "int4_packing_format": "tile_packed_to_4d"},
    )
    assert asked[-1] == ("Float8WeightOnlyConfig", {})
    assert traces(model) == clean


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")
def test_torchao_itself_multiplies() -> None:
    weight, rows = torch.randn(96, 128), torch.randn(3, 128)
    packed = packer("torchao_fp8", torch.device("cpu"))(weight)
    expected = rows @ weight.T
    assert (packed(rows) - expected).norm() / expected.norm() < 0.06
    assert packed.num_bytes < weight.nbytes / 3


@pytest.mark.gpu(real=True)
@pytest.mark.parametrize("bits, most", [("int4", 0.15), ("fp8", 0.06), ("int8", 0.02)])
def test_a_gpu_multiplies_low_bits(bits: Any, most: float) -> None:
    weight, rows = torch.randn(256, 160, device="cuda"), torch.randn(3, 160, device="cuda")
    expected = rows @ weight.T
    packed = packer(bits, weight.device)(weight.bfloat16())
    assert (packed(rows.bfloat16()).float() - expected).norm() / expected.norm() < most


@pytest.mark.parametrize("ins, tiles", [(4096, 8), (192, 4), (96, 2)])
def test_cuda_takes_as_many_tiles_as_divide_the_inputs(ins: int, tiles: int) -> None:
    assert lowbit._inner_tiles(ins) == tiles


@pytest.mark.parametrize("bits", ["int8", "int4", "fp8"])
@pytest.mark.parametrize("rows", [1, 5, 300])
def test_layers_by_one_copy_are_the_layers_by_their_own(bits: Any, rows: int) -> None:
    """Each output has a scale of its own, and the states are rounded alike: the same bits."""
    layers = [nn.Linear(64, outs, bias=outs == 32) for outs in (96, 32, 64)]
    pack = packer(bits, torch.device("cpu"))
    joint, alone = LowBitLayers(layers, pack), [LowBitLayers([layer], pack) for layer in layers]
    with torch.no_grad():
        for _ in range(2):
            states = torch.randn(2, rows, 64)
            expected = [one(states) for one in alone]
            assert torch.equal(joint(states), torch.cat(expected, dim=-1))
            shared = [forward(states) for forward in joint.forwards]
            assert all(map(torch.equal, shared, expected))
            assert all(part.is_contiguous() for part in shared)
            layers[1].weight.add_(1.0)  # weights and biases that change are followed
            layers[1].bias.add_(1.0)


def test_layers_that_are_given_the_same_states_share_a_product() -> None:
    calls: list[Tensor] = []

    class Counted(DynamicInt8):
        def __call__(self, states: Tensor) -> Tensor:
            calls.append(states)
            return super().__call__(states)

    joint = LowBitLayers([nn.Linear(16, 16) for _ in range(3)], Counted)
    q, k, v = joint.forwards
    with torch.no_grad():
        for wrap in (torch.no_grad, torch.inference_mode):
            with wrap():
                states = torch.randn(1, 16)
                calls.clear()
                assert not torch.equal(q(states), k(states))
                v(states)
                assert len(calls) == 1
                v(states)  # once all are served nothing is kept
                assert len(calls) == 2
                joint.forget()
                q(states.clone())
                assert len(calls) == 3
        before = v(states := torch.randn(1, 16))
        states.mul_(2.0)
        assert not torch.equal(v(states), before)


def test_layers_that_read_the_same_states_are_one_product_each_block() -> None:
    """In the tower as in a model's own forward: q with k and v, o, gate with up, down, the head."""
    calls: list[int] = []

    class Counted(DynamicInt8):
        def __call__(self, states: Tensor) -> Tensor:
            calls.append(states.shape[-1])
            return super().__call__(states)

    model = FAMILIES["llama"].build(torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(lowbit._LADDER, "int8", (Counted,))
        copied = QuantisedLinears(model, min_weights=1)
    own = Target(model)
    towered = probe(model, blocks=quick_blocks(model))[0]
    drafted = []
    for target in (own, towered):
        draft = target.variant(copied)
        cache, placement = prefilled(draft)
        calls.clear()
        drafted.append(draft.score([FIVE], cache, [placement])[0].logits)
        assert len(calls) == 2 * 4 + 1
    torch.testing.assert_close(*drafted, rtol=1e-3, atol=1e-3)


def test_a_drafts_norm_is_the_models_but_for_its_last_bits() -> None:
    model = FAMILIES["llama"].build(torch.float32)
    layer = model.model.layers[0]
    with torch.no_grad():
        layer.input_layernorm.weight.normal_()
        project = Projections(layer.input_layernorm, [layer.self_attn.q_proj], copied=False)
        width = layer.self_attn.q_proj.in_features
        states = torch.randn(2, 3, width) * torch.tensor([0.0, 1e-4, 1e3])[:, None]
        drafted = project.with_products({layer.self_attn.q_proj: lambda normed: normed})(states)
        expected = layer.input_layernorm(states)
    torch.testing.assert_close(drafted, expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(drafted, project._normed(states))  # it is another computation


def test_quick_layers_are_attached_for_what_the_copy_leaves_to_them() -> None:
    model = FAMILIES["llama"].build(torch.float32)
    blocks = quick_blocks(model)
    assert blocks is not None and blocks.tower is not None
    assert blocks.tower.calls_linears
    assert (
        QuantisedLinears(model, with_head=False, min_weights=1).within(blocks.tower).calls_linears
    )  # type: ignore[union-attr]
    copied = QuantisedLinears(model, min_weights=1)
    assert not copied.within(blocks.tower).calls_linears  # type: ignore[union-attr]
    attached: list[bool] = []

    class Watched(Linears):
        @contextmanager
        def attached(self) -> Iterator[None]:
            attached.append(True)
            with super().attached():
                yield

    target = probe(model, blocks=blocks, linears=Watched(model))[0]
    draft = target.variant(copied)
    cache, placement = prefilled(draft)
    draft.score([FIVE], cache, [placement])
    assert not attached
    target.score([FIVE], cache, [placement])
    assert attached == [True]


@pytest.mark.parametrize("bits", ["int8", "int4", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_targets_own_logits_are_the_same_bits_before_between_and_after(
    bits: Any, dtype: torch.dtype
) -> None:
    model = FAMILIES["llama"].build(dtype)
    target = Target(model)
    before, clean = logits(target), traces(model)
    quantised = QuantisedLinears(model, bits, min_weights=1)
    draft = target.variant(quantised)
    drafted = logits(draft)
    assert torch.equal(logits(target), before)
    assert not torch.equal(drafted, before)
    assert (drafted - before).norm() / before.norm() < {"int8": 0.1, "fp8": 0.3, "int4": 0.6}[bits]
    assert torch.equal(logits(draft), drafted)
    assert traces(model) == clean


def test_an_error_in_a_draft_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES["llama"].build(torch.float32)
    target = Target(model)
    before, clean = logits(target), traces(model)
    draft = target.variant(QuantisedLinears(model, min_weights=1), skipping(model, 1))

    def fail(*args: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(model.model.norm, "forward", fail)
        logits(draft)
    assert traces(model) == clean
    assert torch.equal(logits(target), before)


def test_the_copy_follows_a_weight_that_changes() -> None:
    model = FAMILIES["llama"].build(torch.float32)
    draft = Target(model).variant(QuantisedLinears(model, min_weights=1))
    before = logits(draft)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(3.0)
    fresh = Target(model).variant(QuantisedLinears(model, min_weights=1))
    after = logits(draft)
    assert not torch.equal(after, before)
    assert torch.equal(after, logits(fresh))


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_copied_and_the_embedding_is_not(tied: bool) -> None:
    model = FAMILIES["llama"].build(torch.float32)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    ids = torch.arange(5)
    before = model.model.embed_tokens(ids)
    with_head = QuantisedLinears(model, min_weights=1)
    without = QuantisedLinears(model, with_head=False, min_weights=1)
    assert with_head.num_layers == without.num_layers + 1
    assert with_head.num_bytes > without.num_bytes
    with with_head.attached():
        assert torch.equal(model.model.embed_tokens(ids), before)


def test_a_bias_is_added_in_full() -> None:
    model = FAMILIES["qwen2"].build(torch.float32)
    biased = [m for m in model.modules() if isinstance(m, nn.Linear) and m.bias is not None]
    assert biased
    quantised = QuantisedLinears(model, min_weights=1)
    zeros = torch.zeros(1, biased[0].in_features)
    with torch.no_grad():
        biased[0].bias.normal_()
        with quantised.attached():
            assert torch.equal(biased[0](zeros)[0], biased[0].bias)


@needs_peft
def test_an_adapter_stays_precise_above_a_quantised_base() -> None:
    import peft

    model = FAMILIES["llama"].build(torch.float32)
    shape = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, shape)
    inner = adapted.get_base_model()
    target = Target(inner)
    draft = target.variant(QuantisedLinears(inner, min_weights=1))
    spoken = logits(draft)
    own = logits(target)
    with adapted.disable_adapter():
        silent = logits(draft)
    assert not torch.equal(spoken, silent)
    assert (spoken - own).norm() < (silent - own).norm()


def test_a_model_that_is_quantised_already_is_declined() -> None:
    model = FAMILIES["llama"].build(torch.float32)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match="weights=same"):
        QuantisedLinears(model, min_weights=1)


def test_unknown_bits_are_refused() -> None:
    with pytest.raises(ConfigError, match="int3"):
        QuantisedLinears(FAMILIES["llama"].build(torch.float32), "int3")  # type: ignore[arg-type]


def skipping(model: Any, *layers: int, packing: Any = ()) -> SkippedLayers:
    skipped = SkippedLayers(model, packing=packing)
    skipped.skipped = frozenset(layers)
    return skipped


def replaced(out: Any, states: Any) -> Any:
    """A layer's output with other hidden states."""
    return (states, *out[1:]) if isinstance(out, tuple) else states


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_skipped_layer_does_nothing(family: str) -> None:
    """Skipped is the same as computed and thrown away; and the score of the whole model that
    comes next over the same nodes is what it would have been."""
    model = FAMILIES[family].build(torch.float32)
    target = Target(model, mask_rule=probe(model)[0].mask_rule)
    clean = logits(target)
    cache, placement = prefilled(target)
    layer = 2 if 1 in target.cross_layers else 1  # a text passes over those by itself
    skipped = skipping(model, layer, packing=target.packing)
    drafted = target.variant(skipped).score([FIVE], cache, [placement])[0].logits
    assert torch.equal(target.score([FIVE], cache, [placement])[0].logits, clean)
    hook = decoder_layers(model)[layer].register_forward_hook(
        lambda module, args, kwargs, out: replaced(out, (*args, *kwargs.values())[0]),
        with_kwargs=True,
    )
    expected = target.score([FIVE], cache, [placement])[0].logits
    hook.remove()
    assert not torch.equal(expected, clean)
    torch.testing.assert_close(drafted, expected, rtol=0, atol=0)
