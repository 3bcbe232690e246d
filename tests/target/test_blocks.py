"""Blocks computed in fewer operations: the same numbers, and only where nothing else has a hand."""

import copy
from typing import Any

import pytest
import torch
from families import EXCHANGEABLE, FAMILIES
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel

import mmspec
from mmspec.kv import KVCache
from mmspec.requests import Request
from mmspec.state import Placement, Prompt
from mmspec.target import Target, blocks
from mmspec.target.blocks import Blocks
from mmspec.target.self_draft import draft_forward
from mmspec.target.tower import TextTower, TowerOutput, quick_blocks
from mmspec.tree import TokenTree

FIVE = TokenTree((60, 61, 62, 63, 64), (-1, 0, 0, 1, 1), (1.0,) * 5, ("", *"aaaa"))
KNOWN = ["llama", "mistral_sliding", "qwen2", "qwen2_sliding", "qwen3", "llava", "qwen3_vl"]
KNOWN += ["llava_next", "smolvlm", "idefics3", "internvl", "qwen2_vl", "qwen2_5_vl"]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The blocks that were computed the quick way, since the test began."""
    seen: list[object] = []
    original = blocks.Block.run

    def counted(self: Any, *args: Any) -> Any:
        seen.append(self)
        return original(self, *args)

    monkeypatch.setattr(blocks.Block, "run", counted)
    return seen


def prefilled(target: Target, length: int) -> tuple[KVCache, Placement]:
    cache = target.new_cache()
    row = cache.open(length + 8)
    return cache, target.prefill(Prompt(torch.arange(30, 30 + length)), cache, row).placement


def score(target: Target, length: int = 20, taps: tuple[int, ...] = ()) -> Any:
    """Of a batch of two rows, the second shorter."""
    cache, first = prefilled(target, length)
    row = cache.open(length)
    second = target.prefill(Prompt(torch.arange(40, 40 + length // 2)), cache, row).placement
    return target.score([FIVE, TokenTree.root(60)], cache, [first, second], taps=taps)


def quick(model: PreTrainedModel, *, copied: bool = True) -> Target:
    return Target(model, attention="tree", blocks=quick_blocks(model, copied=copied))


def distance(a: Any, b: Any) -> float:
    pairs = zip(a, b, strict=True)
    return max(float((x.logits - y.logits).abs().max() / y.logits.std()) for x, y in pairs)


@pytest.mark.parametrize("name", EXCHANGEABLE)
def test_every_family_scores_the_same_in_quick_blocks(name: str, computed: list[object]) -> None:
    model = FAMILIES[name].build(torch.float64)
    expected = score(Target(model, attention="tree"))
    assert distance(score(quick(model)), expected) < 1e-6  # norms are computed in float32
    if name in KNOWN:
        assert len(computed) == model.config.get_text_config().num_hidden_layers


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("name", KNOWN)
def test_copies_of_the_weights_compute_the_same(name: str, copied: bool) -> None:
    model = FAMILIES[name].build(torch.float32)
    target = quick(model, copied=copied)
    assert distance(score(target), score(Target(model, attention="tree"))) < 1e-4
    made = target.attachments.blocks
    assert made is not None and (made.num_bytes > 0) == copied


def test_a_weight_in_the_place_of_one_that_is_gone_is_copied_again() -> None:
    """Memory of a weight that was replaced may be the next one's."""
    model = FAMILIES["llama"].build(torch.float32)
    target = quick(model)
    score(target)
    weight = model.get_decoder().layers[0].self_attn.q_proj.weight
    replaced = weight.data_ptr()
    for _ in range(50):
        weight.data = weight.data * 2
        if weight.data_ptr() == replaced:
            break
    weight.data = -weight.data if weight.data_ptr() != replaced else weight.data
    assert distance(score(target), score(quick(model))) < 1e-5


def test_a_changed_weight_is_copied_again() -> None:
    model = FAMILIES["qwen2"].build(torch.float32)
    target = quick(model)
    score(target)
    layer: Any = model.get_decoder().layers[0]
    with torch.no_grad():
        layer.input_layernorm.weight.mul_(1.5)  # in place, as an optimiser does it
        layer.self_attn.k_proj.bias.add_(0.3)
    layer.mlp.up_proj.weight = nn.Parameter(layer.mlp.up_proj.weight.detach() * 2)
    assert distance(score(target), score(Target(model, attention="tree"))) < 1e-4


def test_hidden_states_are_tapped_as_before(computed: list[object]) -> None:
    model = FAMILIES["qwen3"].build(torch.float64)
    made = quick(model)
    model.register_forward_hook(lambda *_: None)  # so that the model's own forward runs the blocks
    own, found = (score(t, taps=(1,)) for t in (Target(model, attention="tree"), made))
    assert computed
    assert float((own[0].hidden[1] - found[0].hidden[1]).abs().max()) < 1e-5


# The tower: past the modules around the blocks


@pytest.fixture
def towers(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The towers that ran, since the test began."""
    seen: list[object] = []
    original = TextTower.__call__

    def counted(self: TextTower, **inputs: Any) -> TowerOutput:
        seen.append(self)
        return original(self, **inputs)

    monkeypatch.setattr(TextTower, "__call__", counted)
    return seen


@pytest.mark.parametrize(
    "name",
    [
        *("llama", "qwen2", "qwen2_sliding", "qwen3", "mistral_sliding"),
        *("llava", "smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
    ],
)
def test_a_decoder_of_quick_blocks_runs_without_what_is_around(
    name: str, towers: list[object]
) -> None:
    model = FAMILIES[name].build(torch.float64)
    expected = score(Target(model, attention="tree"))
    assert not towers
    assert distance(score(quick(model)), expected) < 1e-6
    assert len(towers) == 1


@pytest.mark.parametrize("name", ["llama", "qwen3_vl"])
def test_a_tower_gives_the_hidden_states_of_the_models_own_forward(
    name: str, towers: list[object]
) -> None:
    model = FAMILIES[name].build(torch.float64)
    taps = (0, 1, len(model.get_decoder().layers))  # the last: after the final norm
    own, made = (score(t, taps=taps) for t in (Target(model, attention="tree"), quick(model)))
    assert len(towers) == 1
    for row, (expected, found) in enumerate(zip(own, made, strict=True)):
        for tap in taps:
            error = float((expected.hidden[tap] - found.hidden[tap]).abs().max())
            assert error < 1e-5, f"row {row}, tap {tap}: off by {error:.2g}"


@pytest.mark.parametrize("where", ["", "model", "model.language_model", "lm_head"])
def test_what_others_put_around_the_decoder_is_run(where: str, towers: list[object]) -> None:
    model = FAMILIES["llava"].build(torch.float64)
    target = quick(model)
    seen: list[object] = []
    model.get_submodule(where).register_forward_hook(lambda *_: seen.append(where))
    score(target)
    assert seen and not towers


def test_another_head_is_run(towers: list[object]) -> None:
    model = FAMILIES["llama"].build(torch.float64)
    target = quick(model)
    model.set_output_embeddings(nn.Linear(64, 7, bias=False, dtype=torch.float64))
    assert score(target)[0].logits.shape[-1] == 7
    assert not towers


def test_another_layer_is_run(towers: list[object]) -> None:
    model = FAMILIES["llama"].build(torch.float64)
    target = quick(model)
    model.model.layers[1] = copy.deepcopy(model.model.layers[0])
    model.model.layers[1].self_attn.layer_idx = 1
    made = score(target)
    assert not towers
    assert distance(made, score(Target(model, attention="tree"))) < 1e-6


def test_a_model_with_a_forward_of_its_own_has_no_tower() -> None:
    class Louder(LlamaForCausalLM):
        def forward(self, *, position_ids: Any = None, **inputs: Any) -> Any:
            output = super().forward(position_ids=position_ids, **inputs)
            output.logits = output.logits * 2
            return output

    model = FAMILIES["llama"].build(torch.float64)
    before = score(quick(model))[0].logits
    model.__class__ = Louder
    torch.testing.assert_close(score(quick(model))[0].logits, before * 2)


def _hooked(layer: Any) -> None:
    layer.mlp.register_forward_hook(lambda module, args, output: output * 2)


def _adapted(layer: Any) -> None:
    layer.self_attn.q_proj = nn.Sequential(layer.self_attn.q_proj, nn.Dropout(0.0))


def _offloaded(layer: Any) -> None:
    own = layer.self_attn.o_proj.forward
    layer.self_attn.o_proj.forward = lambda states: own(states) * 2


@pytest.mark.parametrize("meddle", [_hooked, _adapted, _offloaded])
def test_a_block_that_others_changed_is_left_to_itself(meddle: Any, computed: list[object]) -> None:
    model = FAMILIES["llama"].build(torch.float64)
    target = quick(model)
    meddle(model.get_decoder().layers[1])
    made = score(target)
    assert len(computed) == 1, "the first block is as it was"
    assert distance(made, score(Target(model, attention="tree"))) < 1e-6


def test_an_adapter_that_comes_later_is_computed(computed: list[object]) -> None:
    peft = pytest.importorskip("peft")
    model = FAMILIES["llama"].build(torch.float64)
    target = quick(model)
    before = score(target)
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, model)
    computed.clear()
    after = score(target)
    assert not computed
    assert distance(after, score(Target(model, attention="tree"))) < 1e-6
    assert distance(after, before) > 1e-3


def test_training_and_autocast_are_left_alone(computed: list[object]) -> None:
    model = FAMILIES["llama"].build(torch.float32)
    target = quick(model)
    model.train()
    score(target)
    assert not computed
    layer = model.eval().get_decoder().layers[0]
    made = quick_blocks(model)
    assert made is not None
    with made.attached():
        assert "forward" in layer.__dict__
    assert made.tower is not None and made.tower.can_run()
    with torch.autocast("cpu", dtype=torch.bfloat16), made.attached():
        assert "forward" not in layer.__dict__
        assert not made.tower.can_run()


def test_what_is_not_plain_gets_no_quick_blocks() -> None:
    assert quick_blocks(FAMILIES["llama"].build(torch.bfloat16)) is None
    assert quick_blocks(FAMILIES["gemma2"].build(torch.float32)) is None
    made = quick_blocks(FAMILIES["llama"].build(torch.float32))
    assert isinstance(made, Blocks)


def test_packed_layers_without_a_weight_get_none() -> None:
    """As GPTQ and AWQ keep theirs."""

    class Packed(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.qweight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return states @ self.qweight.T

    model = FAMILIES["llama"].build(torch.float32)
    for layer in model.model.layers:
        layer.self_attn.q_proj = Packed(layer.self_attn.q_proj)
    assert quick_blocks(model) is None
    engine = mmspec.load(model, drafter="prompt_lookup")
    ids = torch.arange(30, 40)[None]
    found = engine.generate({"input_ids": ids}, max_new_tokens=8, temperature=0.0)
    plain = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert list(found.tokens) == plain[0, 10:].tolist()


def test_an_engine_decodes_in_them(computed: list[object]) -> None:
    model = FAMILIES["llama"].build(torch.float64)
    engine = mmspec.load(model)
    computed.clear()
    engine.generate(Request(Prompt(torch.arange(30, 42)), max_new_tokens=4), ignore_eos=True)
    assert computed
    assert all("forward" not in module.__dict__ for module in model.modules())


@pytest.mark.parametrize(
    "options",
    [{"weights": "int8"}, {"skipped": [1]}, {"weights": "int8", "skipped": [0]}],
    ids=["int8", "skipped", "both"],
)
@pytest.mark.parametrize("name", ["llama", "qwen3", "llava"])
def test_what_drafts_with_the_target_runs_in_its_tower(
    name: str, options: Any, towers: list[object]
) -> None:
    """With the same result as attached to the model's own modules."""
    model = FAMILIES[name].build(torch.float32)
    make = draft_forward(**options)
    assert make is not None
    expected = score(make(Target(model, attention="tree")))
    assert not towers
    plain = quick(model, copied=False)
    assert distance(score(make(plain)), expected) < 1e-4
    assert len(towers) == 1
    assert distance(score(plain), expected) > 1e-4  # which was left as it is


def test_a_draft_follows_a_weight_that_has_changed(towers: list[object]) -> None:
    model = FAMILIES["llama"].build(torch.float32)
    make = draft_forward(weights="int8")
    assert make is not None
    draft = make(quick(model))
    before = score(draft)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(3.0)
    assert distance(score(draft), score(make(quick(model)))) == 0.0
    assert distance(score(draft), before) > 1e-3 and len(towers) == 4
