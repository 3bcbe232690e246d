"""What is attached for a score call, and that nothing of it is left on the model."""

import copy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import EXCHANGEABLE, FAMILIES, prompt_inputs
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel

import mmspec
from mmspec.attention import interface
from mmspec.attention.interface import attached
from mmspec.errors import ConfigError, ModelError
from mmspec.kv import KVCache
from mmspec.requests import Request
from mmspec.state import Placement, Prompt
from mmspec.target import Target, linears
from mmspec.target.linears import quick_linears
from mmspec.target.tower import quick_blocks
from mmspec.tree import TokenTree

FIVE = TokenTree((60, 61, 62, 63, 64), (-1, 0, 0, 1, 1), (1.0,) * 5, ("", *"aaaa"))


def configs(config: Any) -> Iterator[Any]:
    yield config
    for name in config.sub_configs:
        if (inner := getattr(config, name, None)) is not None:
            yield from configs(inner)


def state_of(model: PreTrainedModel) -> dict[str, Any]:
    """All that attaching could leave behind."""
    return {
        "attention": [c._attn_implementation for c in configs(model.config)],
        "config": model.config.to_dict(),
        "attributes": [sorted(module.__dict__) for module in model.modules()],
        "forwards": [module.forward for module in model.modules()],
        "parameters": [(n, id(p), p._version) for n, p in model.named_parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }


def prefilled(target: Target, length: int = 12) -> tuple[KVCache, Placement]:
    cache = target.new_cache()
    row = cache.open(length + 8)
    return cache, target.prefill(Prompt(torch.arange(30, 30 + length)), cache, row).placement


def score(target: Target, tree: TokenTree = FIVE, length: int = 12) -> Tensor:
    cache, placement = prefilled(target, length)
    return target.score([tree], cache, [placement])[0].logits


def attaching(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> Target:
    """A target that attaches everything, small layers too."""
    monkeypatch.setattr(linears, "_MIN_WEIGHTS", 1)
    return Target(model, attention="tree", linears=quick_linears(model), blocks=quick_blocks(model))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each call of tree attention."""
    calls: list[str] = []

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append("tree")
        return original(*args, **kwargs)

    original = interface.tree_attention
    monkeypatch.setattr(interface, "tree_attention", counted)
    return calls


# LAW


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen2_vl", "gemma3", "llava"])
def test_the_model_is_left_as_it_was_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES[name].build(torch.float32)
    ids = torch.arange(30, 45).unsqueeze(0)
    with torch.no_grad():
        before, output = state_of(model), model(input_ids=ids).logits
    target = attaching(model, monkeypatch)
    cache, placement = prefilled(target)
    for _ in range(2):
        target.score([FIVE], cache, [placement])
        with torch.no_grad():
            assert torch.equal(model(input_ids=ids).logits, output)
        assert state_of(model) == before


def test_the_model_is_left_as_it_was_found_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES["llama"].build(torch.float32)
    target = attaching(model, monkeypatch)
    cache, placement = prefilled(target)
    good = target.score([FIVE], cache, [placement])[0].logits
    before = state_of(model)

    def broken(*args: object, **kwargs: object) -> None:
        assert state_of(model) != before, "it is attached here"
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(interface, "tree_attention", broken)
        with pytest.raises(RuntimeError, match="no memory"):
            target.score([FIVE], cache, [placement])
    assert state_of(model) == before
    assert torch.equal(target.score([FIVE], cache, [placement])[0].logits, good)


def test_a_user_may_call_the_model_between_two_pieces_of_a_stream() -> None:
    model = FAMILIES["llava"].build(torch.float64)
    inputs = prompt_inputs(FAMILIES["llava"], "image_first", num_text_tokens=9, seed=0)
    with torch.no_grad():
        expected, before = model(**inputs).logits, state_of(model)
    engine = mmspec.load(model)
    request = Request(inputs, max_new_tokens=12, seed=1)
    alone = engine.generate(request).tokens
    stream = engine.stream(request)
    for _ in stream:
        assert state_of(model) == before
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, expected)
    assert stream.result.tokens == alone


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_another_threads_forward_meanwhile_attends_as_before(implementation: str) -> None:
    model = FAMILIES["llama"].build(torch.float64)
    model.set_attn_implementation(implementation)
    ids = torch.arange(30, 45).unsqueeze(0)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with attached(model.config):
            assert model.config._attn_implementation != implementation
            results: list[Tensor] = []
            with torch.no_grad():
                other = threading.Thread(
                    target=lambda: results.append(model(input_ids=ids).logits.detach())
                )
                other.start()
                other.join()
    assert torch.equal(results[0], expected)


def test_prefill_is_the_models_own(seen: list[str]) -> None:
    target = Target(FAMILIES["llama"].build(torch.float64), attention="tree")
    cache, placement = prefilled(target)
    assert not seen
    target.score([FIVE], cache, [placement])
    assert len(seen) == 2, "once a layer"


def test_plain_decoding_takes_the_same_path(seen: list[str]) -> None:
    engine = mmspec.load(FAMILIES["llama"].build(torch.float64))
    seen.clear()
    prompt = Prompt(torch.arange(30, 42))
    engine.generate(Request(prompt, max_new_tokens=4, speculate=False), ignore_eos=True)
    assert len(seen) == 2 * 3, "two layers, and a step for each token but the first"


# ORACLE


@pytest.mark.parametrize("name", EXCHANGEABLE)
def test_every_family_scores_the_same_through_tree_attention(name: str, seen: list[str]) -> None:
    model = FAMILIES[name].build(torch.float64)
    own, tree = Target(model), Target(model, attention="tree")
    expected = score(own, length=20)
    assert not seen
    difference = score(tree, length=20) - expected
    # Eager attention's softmax is in float32, whatever the model's dtype.
    assert float(difference.abs().max()) < 1e-5 * float(expected.std())
    without = [kind for kind in tree.state_kinds.values() if not kind.has_keys]
    layers = model.config.get_text_config().num_hidden_layers
    attending = layers - len(without) - len(tree.cross_layers)
    assert len(seen) == attending, "no layer declined"


def test_a_layer_that_asks_for_more_gets_the_models_own_attention(
    seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FAMILIES["gpt_oss"].build(torch.float64)
    expected = score(Target(model))
    monkeypatch.setattr(interface, "_UNDERSTOOD", interface._UNDERSTOOD - {"s_aux"})
    assert torch.equal(score(Target(model, attention="tree")), expected)
    assert not seen


def test_hidden_states_are_tapped_as_before() -> None:
    model = FAMILIES["qwen3"].build(torch.float64)
    hidden = []
    for target in (Target(model), Target(model, attention="tree")):
        cache, placement = prefilled(target)
        hidden.append(target.score([FIVE], cache, [placement], taps=[1])[0].hidden[1])
    assert float((hidden[0] - hidden[1]).abs().max()) < 1e-12


# Linear layers


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 17, 64, 65])
@pytest.mark.parametrize("bias", [True, False])
def test_quick_linears_compute_the_same(
    packed: bool, rows: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linears, "_MIN_WEIGHTS", 1)
    model = FAMILIES["qwen2" if bias else "llama"].build(torch.float32)
    quick = quick_linears(model, packed=packed)
    assert quick is not None
    layer = model.get_decoder().layers[0].self_attn.q_proj
    assert (layer.bias is not None) == bias
    states = torch.randn(1, rows, layer.in_features)
    with torch.no_grad():
        expected = layer(states)
        with quick.attached():
            out = layer(states)
            assert "forward" in layer.__dict__
    assert out.shape == expected.shape
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_a_changed_weight_is_packed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES["llama"].build(torch.float32)
    target = attaching(model, monkeypatch)
    before = score(target)
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)  # in place, as an optimiser or a merged adapter does it
    torch.testing.assert_close(score(target), 2 * before, rtol=1e-4, atol=1e-4)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() / 2)
    torch.testing.assert_close(score(target), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "cpu, inputs, rows, threads, is_from_left",
    [
        ("AuthenticAMD", 576, 1, 1, True),
        ("AuthenticAMD", 2048, 1, 1, False),
        ("AuthenticAMD", 2048, 1, 2, True),
        ("AuthenticAMD", 2048, 2, 1, True),
        ("GenuineIntel", 576, 1, 1, False),
        ("GenuineIntel", 2048, 2, 2, False),
    ],
)
def test_one_row_is_left_to_torch_where_that_is_quicker(
    monkeypatch: pytest.MonkeyPatch,
    cpu: str,
    inputs: int,
    rows: int,
    threads: int,
    is_from_left: bool,
) -> None:
    made: list[Tensor] = []

    def recorded(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        made.append(states)
        return F.linear(states, weight, bias)

    monkeypatch.setattr(Path, "read_text", lambda path: f"vendor_id\t: {cpu}")
    linears._is_intel.cache_clear()
    monkeypatch.setattr(linears, "_from_the_left", recorded)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    layer = nn.Linear(inputs, 64)
    states = torch.randn(1, rows, inputs)
    with torch.no_grad():
        torch.testing.assert_close(linears._QuickLinear(layer, packed=True)(states), layer(states))
    linears._is_intel.cache_clear()
    assert bool(made) == is_from_left


def test_only_plain_float32_layers_of_the_text_tower_are_quick(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linears, "_MIN_WEIGHTS", 1)
    for dtype in (torch.float64, torch.bfloat16):
        assert quick_linears(FAMILIES["llama"].build(dtype)) is None
    model = FAMILIES["llava"].build(torch.float32)
    taken = copy.copy(model.get_decoder().layers[0].mlp.up_proj)
    taken.forward = lambda states: states  # as accelerate does it
    model.get_decoder().layers[0].mlp.up_proj = taken
    quick = quick_linears(model)
    assert quick is not None
    with quick.attached():
        changed = {n for n, m in model.named_modules() if "_QuickLinear" in repr(vars(m))}
    assert changed
    assert not any("vision" in name or name.endswith("layers.0.mlp.up_proj") for name in changed)
    assert any(name.endswith("layers.1.mlp.up_proj") for name in changed)


def test_autocast_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linears, "_MIN_WEIGHTS", 1)
    model = FAMILIES["llama"].build(torch.float32)
    quick = quick_linears(model)
    assert quick is not None
    with torch.autocast("cpu", dtype=torch.bfloat16), quick.attached():
        assert model.lm_head(torch.randn(1, 3, 64)).dtype == torch.bfloat16


def test_a_model_that_hands_no_keyword_on_keeps_its_own_attention(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class HandsNothingOn(LlamaForCausalLM):
        def forward(
            self, *, position_ids: Any = None, tree_call: object = None, **kwargs: Any
        ) -> Any:
            return super().forward(position_ids=position_ids, **kwargs)

    model = FAMILIES["llama"].build(torch.float64)
    model.__class__ = HandsNothingOn
    engine = mmspec.load(model)
    assert engine.target.attachments.attention == "model"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "its own is used" in caplog.text


def test_a_configured_model_attention_is_kept_without_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = FAMILIES["llama"].build(torch.float64)
    for overrides, attention in (
        (["decode.attention=model"], "model"),
        (["decode.probe=false"], "model"),
        ([], "tree"),
    ):
        engine = mmspec.load(model, overrides=overrides)
        assert engine.target.attachments.attention == attention
    assert not caplog.records


@pytest.mark.parametrize("override", ["decode.attention=tree", "decode.packed_weights=true"])
def test_an_unknown_way_of_scoring_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=r"expected one of auto, (model|always, never)"):
        mmspec.load(FAMILIES["llama"].build(torch.float64), overrides=[override])


def test_packed_weights_are_as_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linears, "_MIN_WEIGHTS", 1)
    monkeypatch.setattr(linears, "_MAX_AUTO_BYTES", 1000)
    model = FAMILIES["llama"].build(torch.float32)
    for how, packs in (("auto", False), ("always", True), ("never", False)):
        engine = mmspec.load(model, overrides=[f"decode.packed_weights={how}"])
        quick = engine.target.attachments.linears
        assert quick is not None
        score(engine.target)
        assert (quick.num_bytes > 0) == packs


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize("reads", ["score", "chunk"])
def test_a_layer_that_mmspec_does_not_reach_is_noticed(in_blocks: bool, reads: str) -> None:
    """It would attend to whatever there is, without a word: its config is a copy."""
    model = FAMILIES["llama"].build(torch.float32)
    blocks = quick_blocks(model, copied=False) if in_blocks else None
    target = Target(model, attention="tree", blocks=blocks)
    read = score if reads == "score" else read_in_pieces
    before = read(target)
    model.model.layers[1] = copy.deepcopy(model.model.layers[1])
    with pytest.raises(ModelError, match="2 layers 1 attend"):
        read(target)
    model.model.layers[1].self_attn.config = model.config
    assert torch.allclose(read(target), before, atol=1e-4)


def read_in_pieces(target: Target) -> Tensor:
    prompt, cache = Prompt(torch.arange(30, 50)), target.new_cache()
    row = cache.open(prompt.num_tokens)
    target.prefill(prompt, cache, row, stop=12)
    return target.prefill(prompt, cache, row, start=12).logits
