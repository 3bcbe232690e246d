"""Mixers: a tree scored level by level is each of its paths decoded alone."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from draft_models import letters
from families import FAMILIES
from families.hybrid import DECODABLE_HYBRID
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

import mmspec
from mmspec.config import Config, DecodeConfig
from mmspec.drafters.draft_model import DraftModel
from mmspec.drafters.layer_skip import LayerSkip
from mmspec.engine import Engine
from mmspec.errors import ModelError
from mmspec.kv import KVCache, StateKey
from mmspec.kv.state_slots import StateSlots
from mmspec.kv.states import RunningStates
from mmspec.state import Prompt
from mmspec.target import Target, linears
from mmspec.target.linears import quick_linears
from mmspec.target.mixers import Mixer
from mmspec.target.stateful import state_kinds
from mmspec.tree import TokenTree

NAMES = [family.name for family in DECODABLE_HYBRID]
TEXTS = (range(30, 44), range(50, 53), range(70, 71))  # of ragged rows; the last is one token
#      0          0        0        Ragged trees, deeper and shallower ones.
#     / \         |
#    1   2        1
#   /|   |
#  3 4   5
TREES = (
    TokenTree((60, 61, 62, 63, 64, 65), (-1, 0, 0, 1, 1, 2), (1.0,) * 6, ("", *"aaaaa")),
    TokenTree.chain(60, (61,), (1.0,), "a"),
    TokenTree.root(66),
)

Fault = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return FAMILIES[request.param].build(torch.float64)


def alone(model: PreTrainedModel, text: Sequence[int], path: Sequence[int]) -> Tensor:
    """Logits after the path's last token, decoded by the model and its own cache, one by one."""
    key = model.config.model_type, model.dtype, tuple(text), tuple(path)
    if key not in _ALONE:
        _ALONE[key] = _decoded(model, text, path)
    return _ALONE[key]


_ALONE: dict[object, Tensor] = {}  # models of one family and dtype are alike


def _decoded(model: PreTrainedModel, text: Sequence[int], path: Sequence[int]) -> Tensor:
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.tensor([list(text)]), past_key_values=cache, use_cache=True)
        for token in path:
            logits = model(
                input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True
            ).logits
    return logits[0, -1]


def prefilled(target: Target) -> tuple[KVCache, list[Any]]:
    cache = target.new_cache()
    prompts = [Prompt(torch.tensor(list(text))) for text in TEXTS]
    rows = [cache.open(p.num_tokens + 8) for p in prompts]
    pairs = zip(prompts, rows, strict=True)
    return cache, [target.prefill(prompt, cache, row).placement for prompt, row in pairs]


def farthest(target: Target, model: PreTrainedModel) -> float:
    """The largest difference of any node's logits, before a commit and after it."""
    cache, placements = prefilled(target)
    texts = [list(text) for text in TEXTS]
    largest = 0.0
    for paths in ((0, 2, 5), (0, 1), (0,)), ((0, 1, 4), (0,), (0,)):
        scores = target.score(TREES, cache, placements)
        for tree, score, text in zip(TREES, scores, texts, strict=True):
            for node in range(tree.num_nodes):
                path = [tree.tokens[n] for n in tree.path_to(node)]
                largest = max(largest, _apart(score.logits[node], alone(model, text, path)))
        cache.commit({p.row: path for p, path in zip(placements, paths, strict=True)})
        for tree, text, path in zip(TREES, texts, paths, strict=True):
            text += [tree.tokens[node] for node in path]
    return largest


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# ORACLE


def test_every_node_of_ragged_trees_is_its_path_decoded_alone(model: PreTrainedModel) -> None:
    # Recurrences are in float32 in many families, whatever the model's dtype.
    assert farthest(Target(model, attention="tree"), model) < 1e-4


def test_a_tree_scored_in_two_calls_is_the_tree_scored_in_one(model: PreTrainedModel) -> None:
    target, tree = Target(model), TREES[0]
    cache, placements = prefilled(target)
    whole = target.score([tree], cache, placements[:1])[0].logits
    first = target.score([tree.keep(range(2))], cache, placements[:1])[0].logits
    rest = target.score([tree], cache, placements[:1], written=[2])[0].logits
    assert _apart(torch.cat([first, rest]), whole) < 1e-4


def test_a_prompt_of_one_token_and_one_in_pieces_come_to_the_same(model: PreTrainedModel) -> None:
    target, prompt = Target(model), Prompt(torch.arange(30, 49))
    cache = target.new_cache()
    rows = [cache.open(20) for _ in range(2)]
    whole = target.prefill(prompt, cache, rows[0]).logits
    for start, stop in (0, 1), (1, 2), (2, 9), (9, 10), (10, 19):
        pieces = target.prefill(prompt, cache, rows[1], start=start, stop=stop).logits
    assert _apart(pieces, whole) < 1e-4


@pytest.mark.parametrize("name", ["lfm2", "qwen3_5"])
def test_a_chain_goes_on_from_what_its_slots_hold(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where that is rounded: as it is for who goes on in the next call."""

    def rounded(self: StateSlots, key: StateKey, like: Tensor) -> Tensor:
        made = like.new_zeros(self._num_slots, *like.shape[1:], dtype=torch.bfloat16)
        return self.buffers.setdefault(key, made)

    monkeypatch.setattr(StateSlots, "buffer", rounded)
    target, tree = (
        Target(FAMILIES[name].build(torch.float64)),
        TokenTree.chain(60, (61, 62, 63), (1.0,) * 3, "a"),
    )
    cache, placements = prefilled(target)
    whole = target.score([tree], cache, placements[:1])[0].logits
    for node in range(tree.num_nodes):
        part, done = tree.keep(range(node + 1)), [node]
        logits = target.score([part], cache, placements[:1], written=done)[0].logits
        assert _apart(logits[0], whole[node]) < 1e-6


# The faults that this would miss if states hardly mattered


Keys, Found = Sequence[StateKey], dict[StateKey, Tensor]


def states_are_ignored(patch: pytest.MonkeyPatch) -> None:
    right = StateSlots.gather

    def zeros(self: StateSlots, keys: Keys, slots: Tensor) -> Found:
        return {key: torch.zeros_like(state) for key, state in right(self, keys, slots).items()}

    patch.setattr(StateSlots, "gather", zeros)


def states_are_of_another_row(patch: pytest.MonkeyPatch) -> None:
    right = StateSlots.gather

    def rolled(self: StateSlots, keys: Keys, slots: Tensor) -> Found:
        return right(self, keys, slots.roll(1))

    patch.setattr(StateSlots, "gather", rolled)


def states_are_left_in_another_nodes_slot(patch: pytest.MonkeyPatch) -> None:
    right = StateSlots.scatter

    def rolled(self: StateSlots, states: Found, slots: Tensor) -> Found:
        return right(self, states, slots.roll(1))

    patch.setattr(StateSlots, "scatter", rolled)


def siblings_share_the_newest_state(patch: pytest.MonkeyPatch) -> None:
    right = RunningStates.levels

    def chained(self: RunningStates, parents: Sequence[Sequence[int]], written: Any) -> Any:
        wrong = [[max(of) if of[n] >= 0 else -1 for n in range(len(of))] for of in parents]
        wrong = [[min(w, n - 1) for n, w in enumerate(of)] for of in wrong]
        return right(self, wrong, written)

    patch.setattr(RunningStates, "levels", chained)


def commit_takes_the_first_nodes_state(patch: pytest.MonkeyPatch) -> None:
    right = RunningStates.commit

    def first(self: RunningStates, row: int, path: Sequence[int], *, length: int) -> None:
        right(self, row, path[:1], length=length)

    patch.setattr(RunningStates, "commit", first)


def recurrent_states_stay_as_they_were(patch: pytest.MonkeyPatch) -> None:
    right = StateSlots.gather

    def conv_alone(self: StateSlots, keys: Keys, slots: Tensor) -> Found:
        found = right(self, keys, slots)
        return {key: state * (key.kind == "conv") for key, state in found.items()}

    patch.setattr(StateSlots, "gather", conv_alone)


FAULTS: tuple[Fault, ...] = (
    states_are_ignored,
    states_are_of_another_row,
    states_are_left_in_another_nodes_slot,
    siblings_share_the_newest_state,
    commit_takes_the_first_nodes_state,
    recurrent_states_stay_as_they_were,
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_fault_moves_the_logits(
    fault: Fault, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model.config.model_type == "lfm2" and fault is recurrent_states_stay_as_they_were:
        pytest.skip("short convolutions have no other state")
    target = Target(model)
    fault(monkeypatch)
    assert farthest(target, model) > 1e-2


# LAW


def test_a_forward_that_fails_leaves_the_model_as_it_was(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target(model, attention="tree")
    cache, placements = prefilled(target)
    before = [(module, dict(module.__dict__)) for module in model.modules()]
    expected = target.score(TREES, cache, placements)
    right, calls = StateSlots.gather, []

    def fails(self: StateSlots, keys: Keys, slots: Tensor) -> Found:
        calls.append(keys)
        if len(calls) == 4:
            raise RuntimeError("in the middle")
        return right(self, keys, slots)

    with monkeypatch.context() as patch:
        patch.setattr(StateSlots, "gather", fails)
        with pytest.raises(RuntimeError, match="in the middle"):
            target.score(TREES, cache, placements)
    for module, attributes in before:
        assert module.__dict__.keys() == attributes.keys()
        assert not module._forward_hooks
    again = target.score(TREES, cache, placements)
    for a, b in zip(expected, again, strict=True):
        assert torch.equal(a.logits, b.logits)


def test_what_does_not_depend_on_the_state_is_computed_once(model: PreTrainedModel) -> None:
    target = Target(model)
    cache, placements = prefilled(target)
    shapes: list[tuple[int, ...]] = []
    own = model.get_decoder().layers[0]
    mixer = next(m for m in target.attachments.mixers.each if m.layer == 0)
    assert any(module is mixer.module for module in own.modules())
    assert mixer.output is not None
    assert len(mixer.inputs) == {"qwen3_next": 2, "qwen3_5": 4, "falcon_h1": 0}.get(
        model.config.model_type, 1
    )
    forwards = {m: m.forward for m in (*mixer.inputs, mixer.output)}
    for module, forward in forwards.items():

        def counted(states: Tensor, *, forward: Any = forward) -> Tensor:
            shapes.append(tuple(states.shape[:2]))
            return forward(states)

        module.forward = counted
    try:
        target.score(TREES, cache, placements)
    finally:
        for module in forwards:
            del module.forward
    assert shapes == [(9, 1)] * len(forwards), "once, for the nine nodes of three rows"


def test_mixers_whose_projections_are_not_found_are_computed_all_the_same(
    model: PreTrainedModel,
) -> None:
    target = Target(model)
    for mixer in target.attachments.mixers.each:
        mixer.inputs, mixer.output = [], None
    assert farthest(target, model) < 1e-4


def wrapped(mixer: Mixer, child: nn.Module) -> None:
    """As an adapter does: another module in the child's place, which has it within."""

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer = child

        def forward(self, states: Tensor) -> Tensor:
            product = self.base_layer(states)
            return product + states.mean(-1, keepdim=True)

    for parent in mixer.module.modules():
        for name, module in parent._modules.items():
            if module is child:
                setattr(parent, name, Adapted())
                return


def hooked_before(mixer: Mixer, child: nn.Module) -> None:
    child.register_forward_pre_hook(lambda _, args: (args[0] * 1.5,))


def hooked_behind(mixer: Mixer, child: nn.Module) -> None:
    child.register_forward_hook(lambda _, args, product: product + args[0].mean(-1, keepdim=True))


@pytest.mark.parametrize("change", [wrapped, hooked_before, hooked_behind])
@pytest.mark.parametrize("name", ["qwen3_5", "lfm2", "granite_hybrid"])
def test_adapters_and_hooks_that_come_later_are_not_passed_over(
    name: str, change: Callable[[Mixer, nn.Module], None]
) -> None:
    model = FAMILIES[name].build(torch.float64)
    target = Target(model)
    for mixer in target.attachments.mixers.each:
        assert mixer.inputs and mixer.output is not None
        for child in (*mixer.inputs, mixer.output):
            change(mixer, child)
    cache, placements = prefilled(target)
    scores = target.score(TREES, cache, placements)
    for tree, score, text in zip(TREES, scores, TEXTS, strict=True):
        for node in range(tree.num_nodes):
            path = [tree.tokens[n] for n in tree.path_to(node)]
            assert _apart(score.logits[node], _decoded(model, list(text), path)) < 1e-4


def test_quick_linear_layers_serve_mixers_too(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linears, "_MIN_WEIGHTS", 1)
    single = model.float()
    target = Target(single, attention="tree", linears=quick_linears(single))
    mixer = next(m for m in target.attachments.mixers.each if m.layer == 0)
    assert target.attachments.linears is not None
    taken = [module for module, _ in target.attachments.linears._forwards]
    assert mixer.output in taken
    assert farthest(target, single) < 1e-2


def test_a_model_that_keeps_its_states_elsewhere_is_refused(model: PreTrainedModel) -> None:
    class Hides(nn.Module):
        """Reads without the cache."""

        def __init__(self, mixer: nn.Module) -> None:
            super().__init__()
            self.mixer = mixer

        def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
            return self.mixer(hidden_states)

    for name, module in list(model.named_modules()):
        if name.endswith(("linear_attn", "mamba", ".conv")) and hasattr(module, "layer_idx"):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, Hides(module))
    with pytest.raises(ModelError, match=r"outside of transformers' cache"):
        Target(model)


def test_what_the_cache_keeps_is_what_transformers_keeps() -> None:
    kinds = state_kinds(FAMILIES["falcon_h1"].build(torch.float32).config)
    assert {index: tuple(kind) for index, kind in kinds.items()} == {0: (1, True), 1: (1, True)}
    kinds = state_kinds(FAMILIES["qwen3_5"].build(torch.float32).config)
    assert {index: tuple(kind) for index, kind in kinds.items()} == {0: (1, False), 1: (1, False)}
    assert state_kinds(FAMILIES["qwen2_vl"].build(torch.float32).config) == {}


# What is not possible says so


def test_bitwise_mode_is_refused_with_the_reason() -> None:
    model = FAMILIES["lfm2"].build(torch.float32)
    config = Config(decode=DecodeConfig(exactness="bitwise", max_rows=2, max_nodes=4))
    with pytest.raises(ModelError, match="keeps running states"):
        mmspec.load(model, config=config)


def test_no_more_nodes_are_drafted_than_there_is_room_for_their_states() -> None:
    model = FAMILIES["qwen3_5"].build(torch.float32)
    inputs = {"input_ids": torch.tensor([[40, 41, 42, 43] * 4])}
    requests = [mmspec.Request(inputs, max_new_tokens=9, temperature=0.0) for _ in range(2)]
    slot = Target(model).state_bytes
    assert slot > 0
    found = {}
    for states in (3, 7, 2 * 65):
        decode = {"state_bytes": slot * states, "controller": "fixed", "cuda_graphs": "never"}
        drafter = LayerSkip(layers=[1], max_depth=4, min_confidence=0.0)
        engine = mmspec.load(model, letters(), overrides={"decode": decode}, drafter=[drafter])
        results = engine.generate(requests)
        drafted = [sum(c.proposed for c in r.stats.by_drafter.values()) for r in results]
        steps = sum(result.stats.steps for result in results)
        found[states] = [result.tokens for result in results], sum(drafted) / steps
    texts, a_step = zip(*found.values(), strict=True)
    assert all(text == texts[0] for text in texts)
    assert a_step[0] == 0 and 0 < a_step[1] <= 2 and a_step[2] > 2, a_step


@pytest.mark.parametrize(("verifier", "enough"), [("coupled", 2), ("recursive", 8)])
def test_where_no_drafted_node_has_room_for_its_states_that_is_said(
    verifier: str, enough: int, caplog: pytest.LogCaptureFixture
) -> None:
    target = Target(FAMILIES["qwen3_5"].build(torch.float32))
    drafter = LayerSkip(layers=[1], draw="sample")
    for states, is_said in ((enough, False), (0, False), (enough - 1, True)):
        Engine(target, None, [drafter], verifier=verifier, max_rows=4,
               state_bytes=states * target.state_bytes)  # fmt: skip
        assert bool(caplog.records) == is_said
    (record,) = caplog.records
    size = enough * target.state_bytes
    assert f"expected {size} bytes or more for {enough // 2} request" in record.message


@pytest.mark.parametrize("verifier", ["recursive", "typical_lossy"])
def test_a_text_depends_on_no_other_row_where_the_room_for_states_binds(verifier: str) -> None:
    """By these rules it depends on the tree, and so on how many nodes are drafted."""
    model = FAMILIES["qwen3_5"].build(torch.float64)
    inputs = {"input_ids": torch.tensor([[40, 41, 42, 43] * 4])}
    requests = [
        mmspec.Request(inputs, max_new_tokens=12, temperature=1.0, seed=seed) for seed in range(4)
    ]
    decode = {
        "state_bytes": Target(model).state_bytes * 16,
        "controller": "fixed",
        "cuda_graphs": "never",
        "verifier": verifier,
        "max_rows": 4,
    }
    small = FAMILIES["llama"].build(torch.float64)
    drafter = DraftModel(small, draw="sample", profile=(4, 2, 1))
    engine = mmspec.load(model, letters(), overrides={"decode": decode}, drafter=[drafter])
    alone = [engine.generate(request) for request in requests]
    together = engine.generate(requests)
    assert [result.tokens for result in together] == [result.tokens for result in alone]
    assert all(result.stats.by_drafter["draft_model"].proposed for result in alone)
