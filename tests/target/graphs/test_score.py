"""When a call is recorded, when it is replayed, and what ends a graph."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count

import interpreted
import pytest
import torch
from families import FAMILIES, prompt_inputs
from matrix import model_of
from tape import TapeRecorder
from tensor_rung import TensorRung
from torch import Tensor, nn

import mmspec.attention.interface
import mmspec.kv.cache
import mmspec.kv.kernels
import mmspec.kv.layer
import mmspec.kv.slots
from mmspec.attention.triton_tree import TritonTree
from mmspec.errors import ConfigError, GraphWarning
from mmspec.inputs import from_inputs
from mmspec.kv import KVCache, StateKey
from mmspec.kv.state_slots import NOWHERE, StateSlots
from mmspec.state import Placement, Prompt, Scores
from mmspec.target import Target
from mmspec.target.graphs import GraphInfo, ScoreGraphs
from mmspec.target.probe import probe
from mmspec.target.skipping import SkippedLayers
from mmspec.tree import TokenTree

assert interpreted

#      0        0
#     / \       |
#    1   2      1
#    |
#    3
FORK = TokenTree((20, 21, 22, 23), (-1, 0, 0, 1), (1.0,) * 4, ("",) * 4)
CHAIN = TokenTree((30, 31), (-1, 0), (1.0,) * 2, ("",) * 2)


@pytest.fixture(autouse=True)
def tensor_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmspec.attention.interface, "tree_attention", TensorRung().attend)


class Decoded:
    """A target that records, its twin that does not, and the same rows in both."""

    def __init__(
        self,
        family: str = "llama",
        *,
        lengths: tuple[int, ...] = (19, 7),
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.model = FAMILIES[family].build(dtype)
        self.target, self.twin = (probe(self.model)[0] for _ in range(2))
        self.target.use_graphs(TapeRecorder())
        self.family, self.lengths = family, lengths
        # Recurrences are in float32, whatever the model's dtype.
        is_exact = dtype == torch.float64 and not self.target.state_kinds
        self.error = 1e-9 if is_exact else 1e-3 if dtype != torch.float64 else 1e-5
        self.begin()

    def begin(self) -> None:
        """New caches, with the same prompts."""
        self.cache, self.places = self.prefilled(self.target)
        self.own_cache, self.own_places = self.prefilled(self.twin)

    def prefilled(self, target: Target) -> tuple[KVCache, list[Placement]]:
        cache = target.new_cache()
        prompts = []
        for row, length in enumerate(self.lengths):
            inputs = prompt_inputs(FAMILIES[self.family], "text", num_text_tokens=length, seed=row)
            prompts.append(from_inputs(inputs, self.model.config))
        return cache, [self.placed(target, cache, prompt) for prompt in prompts]

    def placed(self, target: Target, cache: KVCache, prompt: Prompt) -> Placement:
        return target.prefill(prompt, cache, cache.open(prompt.num_tokens + 40)).placement

    def step(self, *trees: TokenTree, path: tuple[int, ...] = (0,), **options: object) -> bool:
        """Scores the trees on both, which must agree, and commits; whether it was replayed."""
        assert self.target.graphs is not None
        before = self.info.replayed
        got = self.target.score(trees, self.cache, self.places[: len(trees)], **options)  # type: ignore[arg-type]
        own = self.twin.score(trees, self.own_cache, self.own_places[: len(trees)], **options)  # type: ignore[arg-type]
        for one, other in zip(got, own, strict=True):
            assert equal(one, other, self.error), (
                f"off by {(one.logits - other.logits).abs().max()}"
            )
        if path:
            for cache, places in ((self.cache, self.places), (self.own_cache, self.own_places)):
                cache.commit({place.row: path for place in places[: len(trees)]})
                cache.check_integrity()
        return self.info.replayed > before

    @property
    def info(self) -> GraphInfo:
        assert self.target.graphs is not None
        return self.target.graphs.info


def equal(one: Scores, other: Scores, error: float) -> bool:
    pairs = [(one.logits, other.logits)]
    pairs += [(one.hidden[tap], other.hidden[tap]) for tap in other.hidden]
    return all(torch.allclose(a, b, rtol=0, atol=error) for a, b in pairs)


@pytest.fixture
def decoded() -> Decoded:
    return Decoded()


def test_a_bucket_is_recorded_when_it_comes_again_and_replayed_from_then_on(
    decoded: Decoded,
) -> None:
    assert not decoded.step(FORK, CHAIN)
    assert decoded.step(FORK, CHAIN, path=(0, 1))
    for _ in range(4):
        assert decoded.step(CHAIN, FORK)
    assert decoded.info == GraphInfo(recorded=1, replayed=5, eager=1, num_graphs=1, given_up="")


def test_padding_rows_and_nodes_write_nothing(decoded: Decoded) -> None:
    lengths = (19, 7, 11)
    decoded = Decoded(lengths=lengths)
    for _ in range(3):
        decoded.step(FORK, CHAIN, TokenTree.root(40), path=())
    before = [buffer.clone() for buffer in decoded.cache.buffers]
    trees = [replace(tree, tokens=tuple(t + 1 for t in tree.tokens)) for tree in (FORK, CHAIN)]
    assert decoded.step(*trees, TokenTree.root(41), path=())
    written = set()
    for place, tree in zip(decoded.places, (*trees, TokenTree.root(41)), strict=True):
        region = decoded.cache.region(place.row)
        end = region.start + region.length
        written |= set(range(end, end + tree.num_nodes))
    for buffer, old in zip(decoded.cache.buffers, before, strict=True):
        changed = (buffer != old).flatten(1).any(dim=1).nonzero().flatten().tolist()
        assert set(changed) == written


def test_draft_steps_on_written_nodes_are_replayed(decoded: Decoded) -> None:
    parts = [FORK.keep(range(n)) for n in (1, 3, 4)]
    for step in range(4):
        for number, tree in enumerate(parts):
            old = 0 if not number else parts[number - 1].num_nodes
            was_replayed = decoded.step(
                tree, tree, path=(0, 1, 3) if number == 2 else (), written=[old, old]
            )
            assert was_replayed == (step > 0 or number == 2)  # levels of one node are one bucket


def test_hidden_states_are_the_callers_own(decoded: Decoded) -> None:
    taps = (1, decoded.target.last_tap)
    kept: list[tuple[Scores, Tensor]] = []
    for _ in range(4):
        decoded.step(FORK, taps=taps)
        score = decoded.target.score([FORK], decoded.cache, decoded.places[:1], taps=taps)[0]
        assert set(score.hidden) == set(taps)
        kept.append((score, score.hidden[1].clone()))
    assert all(torch.equal(score.hidden[1], copy) for score, copy in kept)
    assert decoded.info.replayed == 7


def test_the_next_cache_takes_the_graphs_over(decoded: Decoded) -> None:
    for _ in range(3):
        decoded.step(FORK, CHAIN)
    decoded.cache.release()
    decoded.lengths = (9, 23)
    decoded.begin()
    assert decoded.step(FORK, CHAIN) and decoded.step(CHAIN, CHAIN) is False
    assert decoded.info.recorded == 1


def test_a_cache_whose_buffers_moved_has_other_graphs(decoded: Decoded) -> None:
    for _ in range(3):
        decoded.step(FORK, CHAIN)
    addresses = decoded.cache.addresses
    decoded.cache.open(5000)
    assert decoded.cache.addresses != addresses
    assert [decoded.step(FORK, CHAIN) for _ in range(3)] == [False, True, True]


def test_two_caches_at_a_time_never_meet(decoded: Decoded) -> None:
    for _ in range(3):
        decoded.step(FORK, CHAIN)
    first = decoded.cache, decoded.places, decoded.own_cache, decoded.own_places
    decoded.lengths = (11, 13)
    decoded.begin()
    second = decoded.cache, decoded.places, decoded.own_cache, decoded.own_places
    for _ in range(3):
        for pair in (first, second):
            decoded.cache, decoded.places, decoded.own_cache, decoded.own_places = pair
            decoded.step(FORK, CHAIN)
    assert decoded.info.recorded == 2


def test_a_row_that_moves_is_followed(decoded: Decoded) -> None:
    row = decoded.places[1].row
    start = decoded.cache.region(row).start
    for _ in range(30):  # past the room that the rows were opened with
        decoded.step(FORK, CHAIN, path=(0, 1))
    assert decoded.cache.region(row).start > start, "no row moved"
    assert decoded.info.replayed >= 28


def test_other_weights_end_all_graphs(decoded: Decoded) -> None:
    for _ in range(3):
        decoded.step(FORK, CHAIN)
    layer = decoded.model.get_decoder().layers[0].mlp.down_proj
    with torch.no_grad():
        layer.weight.mul_(1.5)
    assert not decoded.step(FORK, CHAIN)
    layer.weight = nn.Parameter(layer.weight.detach() * 1.5, requires_grad=False)
    assert [decoded.step(FORK, CHAIN) for _ in range(3)] == [False, True, True]


def test_a_hook_of_somebody_else_is_called_each_time(decoded: Decoded) -> None:
    for _ in range(3):
        decoded.step(FORK, CHAIN)
    calls = []
    layer = decoded.model.get_decoder().layers[1]
    handle = layer.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        decoded.target.score([FORK, CHAIN], decoded.cache, decoded.places)
    assert len(calls) == 3
    handle.remove()
    assert [decoded.step(FORK, CHAIN) for _ in range(3)] == [True, True, True]
    assert not decoded.info.given_up


def test_what_is_attached_tells_graphs_apart(decoded: Decoded) -> None:
    layers = SkippedLayers(decoded.model)
    drafting, twin = decoded.target.variant(layers), decoded.twin.variant(layers)
    assert drafting.graphs is not None and drafting.graphs is not decoded.target.graphs
    for skipped in (frozenset({0}), frozenset({1}), frozenset({0})):
        layers.skipped = skipped
        for _ in range(3):
            got = drafting.score([FORK], decoded.cache, decoded.places[:1])[0]
            own = twin.score([FORK], decoded.own_cache, decoded.own_places[:1])[0]
            assert equal(got, own, decoded.error)
    assert drafting.graphs.info.recorded == 2 and drafting.graphs.info.replayed == 7


def test_graphs_that_were_not_used_for_long_are_dropped() -> None:
    decoded = Decoded()
    decoded.target.graphs = ScoreGraphs(TapeRecorder(), torch.device("cpu"), max_graphs=2)
    for tree in (FORK, CHAIN, TokenTree.root(5)):
        for _ in range(2):
            decoded.step(tree)
    assert decoded.info.num_graphs == 2
    assert decoded.step(TokenTree.root(6)) and decoded.step(CHAIN)
    assert decoded.info.recorded == 3
    assert decoded.step(FORK) and decoded.info.recorded == 4  # it was seen before


def test_nothing_is_recorded_where_a_row_has_no_room_to_prove_it() -> None:
    decoded = Decoded(lengths=(5,))
    for cache, place in (
        (decoded.cache, decoded.places[0]),
        (decoded.own_cache, decoded.own_places[0]),
    ):
        region = cache.region(place.row)
        region.capacity = region.length + FORK.num_nodes  # full with this tree
    for _ in range(3):
        assert not decoded.step(FORK, path=())
    assert not decoded.info.given_up
    assert decoded.step(CHAIN, path=()) is False and decoded.step(CHAIN, path=())


def test_all_kernels_are_replayed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = Decoded(lengths=(9,), dtype=torch.float32)
    attend = TritonTree(splits=1).attend
    monkeypatch.setattr(mmspec.attention.interface, "tree_attention", attend)
    for module in (mmspec.kv.slots, mmspec.kv.layer, mmspec.kv.cache):
        monkeypatch.setattr(module, "has_kernels", lambda device: True)
    assert [decoded.step(CHAIN, path=path) for path in ((1,), (0, 1), (1,))] == [False, True, True]


def test_free_drops_graphs_and_buffers(decoded: Decoded) -> None:
    for _ in range(3):
        decoded.step(FORK)
    decoded.cache.release()
    assert decoded.target._buffers is not None and decoded.target._buffers.num_bytes > 0
    decoded.target.free()
    assert decoded.info.num_graphs == 0 and decoded.target._buffers.num_bytes == 0


def test_the_targets_lock_is_free_again_after_an_error(decoded: Decoded) -> None:
    recorder = decoded.target.graphs.recorder  # type: ignore[union-attr]

    def interrupted(forward: object) -> object:
        raise KeyboardInterrupt

    recorder.record = interrupted  # type: ignore[method-assign, assignment]
    decoded.step(FORK)
    with pytest.raises(KeyboardInterrupt):
        decoded.target.score([FORK], decoded.cache, decoded.places[:1])
    with ThreadPoolExecutor() as another:
        assert another.submit(decoded.target._lock.acquire, blocking=False).result()


def test_only_mmspecs_own_attention_is_recorded() -> None:
    target = Target(model_of("llama", "float64"))
    with pytest.raises(ConfigError, match="mmspec's own attention"):
        target.use_graphs(TapeRecorder())
    recording = probe(model_of("llama", "float64"))[0]
    recording.use_graphs(TapeRecorder())
    target.use_graphs_as(recording)
    assert target.graphs is None


def test_a_draft_model_has_a_recorder_of_its_own() -> None:
    target, draft = (probe(model_of("llama", "float64"))[0] for _ in range(2))
    draft.use_graphs_as(target)
    assert draft.graphs is None
    target.use_graphs(TapeRecorder())
    draft.use_graphs_as(target)
    assert target.graphs is not None and draft.graphs is not None
    assert draft.graphs.recorder is not target.graphs.recorder  # their calls may run together
    kept = draft.graphs
    draft.use_graphs_as(target)
    assert draft.graphs is kept


def test_taps_of_a_model_that_passes_over_layers_are_its_own() -> None:
    """A text without images takes mllama's decoder past its layers of cross-attention."""
    decoded = Decoded("mllama")
    taps = range(decoded.target.last_tap + 1)
    assert [decoded.step(FORK, CHAIN, taps=taps) for _ in range(3)] == [False, True, True]


@pytest.mark.parametrize("family", ["qwen3_5", "lfm2"])
def test_running_states_are_left_where_the_call_says(family: str) -> None:
    decoded, roots = Decoded(family), (TokenTree.root(33), TokenTree.root(34))
    for _ in range(3):
        for trees, path in (((FORK, CHAIN), (0, 1)), ((CHAIN, CHAIN), (0, 1)), (roots, (0,))):
            decoded.step(*trees, path=())  # written over
            decoded.step(*trees, path=path)
        decoded.step(FORK, path=(0, 1, 3))
    assert decoded.info == GraphInfo(recorded=4, replayed=17, eager=4, num_graphs=4, given_up="")


def test_a_state_that_is_another_in_a_replay_is_seen_though_no_logit_shows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded, right = Decoded("qwen3_5", lengths=(19,)), StateSlots.scatter

    def wrong(self: StateSlots, states: dict[StateKey, Tensor], slots: Tensor) -> object:
        scale = 1.0 + decoded.cache.length(decoded.places[0].row)  # of the recorded call
        return right(self, {key: state * scale for key, state in states.items()}, slots)

    decoded.step(TokenTree.root(33))
    with monkeypatch.context() as patch, pytest.warns(GraphWarning, match="was off by"):
        patch.setattr(StateSlots, "scatter", wrong)
        patch.setattr(KVCache, "length", lambda *_: next(lengths))
        lengths = count(20)
        decoded.target.score([TokenTree.root(33)], decoded.cache, decoded.places)


def test_what_padding_leaves_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several write to one slot at once: which of them is the last one, a GPU does not say."""
    decoded, right = Decoded("qwen3_5"), StateSlots.scatter

    def racing(self: StateSlots, states: dict[StateKey, Tensor], slots: Tensor) -> object:
        left = right(self, states, slots)
        for key in states:
            self.buffers[key][NOWHERE].normal_()
        return left

    monkeypatch.setattr(StateSlots, "scatter", racing)
    for _ in range(3):
        decoded.step(FORK, CHAIN)
    assert decoded.info == GraphInfo(recorded=1, replayed=2, eager=1, num_graphs=1, given_up="")
