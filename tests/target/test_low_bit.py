"""Quantised draft weights: near the target's while attached, and without a trace afterwards."""

from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import Tensor, nn
from transformers.utils import is_peft_available

from mmspec.errors import ConfigError, ModelError
from mmspec.kv import KVCache
from mmspec.state import Placement, Prompt
from mmspec.target import Target
from mmspec.target.lowbit import DynamicInt8, WeightInt4, WeightInt8
from mmspec.target.probe import probe
from mmspec.target.quantised import QuantisedLinears
from mmspec.target.skipping import SkippedLayers, decoder_layers
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
    "kind, tolerance", [(DynamicInt8, 0.02), (WeightInt8, 0.02), (WeightInt4, 0.15)]
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


@pytest.mark.parametrize("bits", ["int8", "int4"])
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
    assert (drafted - before).norm() / before.norm() < (0.1 if bits == "int8" else 0.6)
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


def skipping(model: Any, *layers: int) -> SkippedLayers:
    skipped = SkippedLayers(model)
    skipped.skipped = frozenset(layers)
    return skipped


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_skipped_layer_does_nothing(family: str) -> None:
    """Skipped is the same as computed and thrown away; and the score of the whole model that
    comes next over the same nodes is what it would have been."""
    model = FAMILIES[family].build(torch.float32)
    target = Target(model, mask_rule=probe(model)[0].mask_rule)
    clean = logits(target)
    cache, placement = prefilled(target)
    drafted = target.variant(skipping(model, 1)).score([FIVE], cache, [placement])[0].logits
    assert torch.equal(target.score([FIVE], cache, [placement])[0].logits, clean)
    hook = decoder_layers(model)[1].register_forward_hook(
        lambda module, args, kwargs, out: (*args, *kwargs.values())[0], with_kwargs=True
    )
    expected = target.score([FIVE], cache, [placement])[0].logits
    hook.remove()
    assert not torch.equal(expected, clean)
    torch.testing.assert_close(drafted, expected, rtol=0, atol=0)
