"""Medusa: heads speak of the right places, trees are the likeliest, drawn ones carry q."""

from collections.abc import Sequence
from typing import Any

import pytest
import ragged
import torch
from asked import Asked
from families import FAMILIES, prompt_inputs
from lent import Lent
from matrix import SAMPLINGS, letters, model_of
from medusa_heads import HEADS, fitted, unfitted
from torch import Tensor

import mmspec
from mmspec.calibration import Calibration
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.draft_guide import DraftGuide
from mmspec.drafters.heads import TargetEnds
from mmspec.drafters.medusa import Medusa
from mmspec.drafters.medusa.best_paths import BestPaths
from mmspec.drafters.medusa.drawn_paths import DrawnPaths
from mmspec.drafters.medusa.session import MedusaSession
from mmspec.drafters.proposal import Proposal
from mmspec.engine import Engine
from mmspec.errors import ConfigError
from mmspec.requests import Request, Result
from mmspec.state import Placement, Prefill, Scores, Verdict
from mmspec.target import Target
from mmspec.tree import TokenTree

GUIDES = {
    "greedy": DraftGuide(is_greedy=True, seed=3, sample=0, prompt_length=2),
    "sampling": DraftGuide(is_greedy=False, seed=3, sample=0, prompt_length=2),
}
LOGITS = torch.randn(HEADS, 12, generator=torch.Generator().manual_seed(7)) * 2


def engine_of(drafter: Medusa, *, family: str = "llama", prefix: int = 0, **decode: Any) -> Engine:
    config = Config(
        decode=DecodeConfig(**{"controller": "fixed", "max_nodes": 20, **decode}),
        cache=CacheConfig(prefix_bytes=prefix),
    )
    return mmspec.load(model_of(family, "float64"), letters(), config=config, drafter=drafter)


def requests_of(sampling: str = "greedy", *, tokens: int = 16) -> list[Request]:
    return ragged.requests_of(
        sampling=sampling, lengths=(30, 17, 23), new=(tokens,) * 3, first_seed=5
    )


def accepted(results: Sequence[Result]) -> int:
    return sum(result.stats.by_drafter["medusa"].accepted for result in results)


# ORACLE: what the heads read, and of which places they speak


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("sampling", ["greedy", "t1"])
@pytest.mark.parametrize("prefix", [0, 2**20])
def test_head_k_says_the_token_k_plus_1_places_after_node_0(
    sampling: str, own: bool, prefix: int, asked: list[Asked]
) -> None:
    """Against a forward over the whole text: the state that chose node 0, under the noise of the
    token that a head speaks of. Also where the prompt's beginning was reused."""
    model, chain = model_of("llama", "float64"), [[0] * (k + 1) for k in range(HEADS)]
    head = unfitted(model, has_own_heads=own)
    engine = engine_of(Medusa(head, tree=chain), prefix=prefix)
    for _ in range(1 + bool(prefix)):
        results = engine.generate(requests_of(sampling))
    assert (results[0].stats.reused_tokens > 0) == bool(prefix)
    ends = TargetEnds(Target(model))
    assert len(asked) > 30
    for _, session, text, _, tree in asked:
        assert isinstance(session, MedusaSession)
        with torch.no_grad():
            states = model(torch.tensor([text[:-1]]), output_hidden_states=True).hidden_states
            logits = head(states[-1][0, -1], ends.logits)
        places = [len(text) + k for k in range(HEADS)]
        guide = session.guide
        scores = guide.warp(logits) + guide.noise_at(places, logits.shape[-1])
        assert tree.tokens[1:] == tuple(scores.argmax(-1).tolist()), f"at {len(text)} tokens"


def test_heads_that_have_learnt_something_are_accepted_more() -> None:
    model = model_of("llama", "float64")
    plain = engine_of(Medusa(unfitted(model))).generate(requests_of(), speculate=False)
    texts = [
        [*request.prompt["input_ids"][0].tolist(), *result.tokens]  # type: ignore[index,call-overload]
        for request, result in zip(requests_of(), plain, strict=True)
    ]
    results, few = (
        engine_of(Medusa(head, top_k=2), max_nodes=6).generate(requests_of())
        for head in (fitted(model, texts), unfitted(model))
    )
    assert [result.tokens for result in results] == [result.tokens for result in plain]
    assert accepted(results) > 2 * accepted(few) + 10
    assert all(result.stats.tokens_per_step > 1.8 for result in results)


def test_heads_in_training_can_be_drafted_with() -> None:
    head = unfitted(model_of("llama", "float64")).requires_grad_(True)
    engine = engine_of(Medusa(head))
    engine.generate(requests_of()[0])
    assert all(weight.requires_grad and weight.grad is None for weight in head.parameters())


def test_images_are_in_the_states_that_it_reads() -> None:
    model = model_of("qwen2_vl", "float64")
    tree = [[rank] for rank in range(19)]
    engine = engine_of(Medusa(unfitted(model, spread=0.02), tree=tree), family="qwen2_vl")
    inputs = [
        prompt_inputs(FAMILIES["qwen2_vl"], layout, num_text_tokens=20)  # type: ignore[arg-type]
        for layout in ("image_first", "image_last")
    ]
    options: dict[str, Any] = {"max_new_tokens": 16, "seed": 3, **SAMPLINGS["t1"]}
    results = engine.generate([Request(ids, **options) for ids in inputs])
    for ids, result in zip(inputs, results, strict=True):
        assert result.tokens == engine.generate(ids, **options, speculate=False).tokens
    assert accepted(results) > 0


def test_rows_that_sample_otherwise_are_drafted_together_in_one_wait() -> None:
    """One forward and one read for three requests."""
    model = model_of("llama", "float64")
    bound = Medusa(unfitted(model)).for_target(Target(model), None)
    state = torch.randn(2, bound._ends.hidden_size, dtype=torch.float64).as_subclass(Lent)
    prefill = Prefill(torch.zeros(1), Placement(0, (0,)), {bound.tap: state})
    guides = [GUIDES["greedy"], GUIDES["sampling"], GUIDES["greedy"]]
    sessions = [bound.start(None, prefill, guide) for guide in guides]  # type: ignore[arg-type]
    Lent.reads.clear()
    trees = bound.propose_together(sessions, [[1, 2, 3], [4, 5], [6, 2, 3]], 20)
    reads = [read for read in Lent.reads if read != "to(cpu)"]  # where its heads lie
    assert reads == ["cpu"], reads
    assert [tree.tokens[0] for tree in trees] == [3, 5, 3]
    assert trees[0].tokens[1:] == trees[2].tokens[1:] != trees[1].tokens[1:]


# LAW: trees of best paths


def best_paths(guide: DraftGuide, calibration: Calibration, **changes: Any) -> TokenTree:
    tree = grown_paths(guide, calibration, **changes).tree
    tree.check_integrity()
    return tree


def grown_paths(
    guide: DraftGuide, calibration: Calibration, *, logits: Tensor = LOGITS, **changes: Any
) -> Proposal:
    options = {"top_k": 4, "min_confidence": 0.0, "budget": 15, "paths": (), "drafter": "medusa"}
    sketch = BestPaths(1, logits, 5, guide=guide, calibration=calibration, **(options | changes))
    return sketch.grow(iter([tensor.tolist() for tensor in sketch.unread]))


@pytest.mark.parametrize("kind", GUIDES)
@pytest.mark.parametrize("budget", [1, 2, 7, 15, 40, 100])
def test_the_tree_is_the_likeliest_of_all_paths(kind: str, budget: int) -> None:
    """Against the whole product of the heads' tokens."""
    whole = best_paths(GUIDES[kind], Calibration(), budget=1000)
    assert whole.num_nodes - 1 == 4 + 4**2 + 4**3
    tree = best_paths(GUIDES[kind], Calibration(), budget=budget)
    likely = sorted(whole.cumulative_confidence[1:], reverse=True)[:budget]
    assert sorted(tree.cumulative_confidence[1:], reverse=True) == pytest.approx(likely)
    paths = {tuple(tree.tokens[n] for n in tree.path_to(node)) for node in range(tree.num_nodes)}
    known = {tuple(whole.tokens[n] for n in whole.path_to(m)) for m in range(whole.num_nodes)}
    assert paths <= known and len(paths) == tree.num_nodes


def test_a_greedy_tree_believes_in_q_and_a_path_below_the_least_is_left_out() -> None:
    q = torch.softmax(LOGITS, -1)
    tree = best_paths(GUIDES["greedy"], Calibration(), budget=1000, min_confidence=0.05)
    for node in range(1, tree.num_nodes):
        depth, token = tree.depths[node], tree.tokens[node]
        assert tree.confidence[node] == pytest.approx(float(q[depth - 1, token]), abs=1e-5)
    assert min(tree.cumulative_confidence) >= 0.05 and tree.num_nodes > 4


def test_what_was_never_chosen_is_believed_less() -> None:
    model = model_of("llama", "float64")
    bound = Medusa(unfitted(model)).for_target(Target(model), None)
    hidden = {bound.tap: torch.zeros(1, 4)}
    prefill = Prefill(torch.zeros(1), Placement(0, (0,)), hidden)
    session = MedusaSession(bound, prefill, GUIDES["sampling"])
    before = best_paths(session.guide, session.calibration, budget=1)
    for _ in range(8):
        grown = grown_paths(session.guide, session.calibration)
        session.remember(grown)
        other = next(token for token in range(12) if grown.tree.child(0, token) is None)
        scores = Scores(torch.zeros(1, 12), hidden)
        session.observe(TokenTree.root(1), Verdict((0,), (other,)), scores)
    after = best_paths(session.guide, session.calibration, budget=1)
    assert after.confidence[1] < before.confidence[1]


PUBLISHED = ((0,), (1,), (0, 0), (0, 1), (2,), (0, 0, 0), (1, 0), (2, 0))


@pytest.mark.parametrize("budget", range(1, 10))
def test_a_fixed_tree_is_its_first_paths_of_the_heads_best_tokens(budget: int) -> None:
    ranked = LOGITS.argsort(dim=-1, descending=True).tolist()
    tree = best_paths(GUIDES["greedy"], Calibration(), budget=budget, paths=PUBLISHED)
    expected = {
        tuple(ranked[depth][rank] for depth, rank in enumerate(path)) for path in PUBLISHED[:budget]
    }
    paths = [tuple(tree.tokens[n] for n in tree.path_to(m)[1:]) for m in range(1, tree.num_nodes)]
    assert set(paths) == expected and len(paths) == len(expected)


def test_where_few_tokens_may_follow_a_fixed_tree_has_fewer_nodes() -> None:
    logits = LOGITS.clone()
    logits[0, 2:] = -torch.inf
    tree = grown_paths(GUIDES["greedy"], Calibration(), logits=logits, paths=PUBLISHED).tree
    assert [list(tree.depths).count(depth) for depth in range(4)] == [1, 2, 3, 1]


@pytest.mark.parametrize("paths", [(), PUBLISHED])
def test_a_node_is_learnt_of_by_its_head_and_by_whether_what_it_follows_was_the_best(
    paths: Any,
) -> None:
    """Each head speaks of a text that it has not seen."""
    grown = grown_paths(GUIDES["greedy"], Calibration(), paths=paths, budget=40)
    tree, best, seen = grown.tree, [1, *LOGITS.argmax(-1).tolist()], set[bool]()
    for node in range(1, tree.num_nodes):
        depth, parent = tree.depths[node], tree.parents[node]
        head, follows_best, _ = grown.buckets[node]  # type: ignore[misc]
        assert head == depth - 1 and follows_best == (tree.tokens[parent] == best[depth - 1])
        seen.add(follows_best)
    assert len(seen) == 2


# LAW: what is drawn


def drawn(
    guide: DraftGuide, profile: Sequence[int], first_draw: int = 0, logits: Tensor = LOGITS
) -> TokenTree:
    sketch = DrawnPaths(
        1, logits, 5, guide=guide, profile=profile, first_draw=first_draw, vocab_size=14,
        drafter="medusa",
    )  # fmt: skip
    tree = sketch.grow(iter([tensor.tolist() for tensor in sketch.unread])).tree
    tree.check_integrity(14)
    return tree


def test_a_drawn_tree_carries_the_q_of_each_nodes_head() -> None:
    logits = LOGITS / 4
    tree = drawn(GUIDES["sampling"], (3, 2, 1), logits=logits)
    depths = list(tree.depths)
    assert [depths.count(depth) for depth in range(4)] == [1, 3, 6, 6]
    q = torch.softmax(logits, -1)
    assert tree.q is not None
    for node in range(tree.num_nodes):
        own = tree.q[node]
        if tree.children(node):
            torch.testing.assert_close(own[:12], q[tree.depths[node]])
        assert float(own[12:].sum()) == 0.0
    below = [tuple(tree.tokens[c] for c in tree.children(n)) for n in tree.children(0)]
    assert len(set(below)) > 1, "nodes of a depth have draws of their own"
    other = drawn(GUIDES["sampling"], (3, 2, 1), first_draw=10, logits=logits)
    assert other.tokens != tree.tokens, "the noise of one draw was used again"


def test_children_are_drawn_from_q_without_replacement() -> None:
    """Over many draws the first child below the second node of depth 1 is distributed as q,
    whatever came before it."""
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1], [0.1, 0.2, 0.3, 0.4]]).log()
    counts, num_draws = torch.zeros(4), 600
    for draw in range(num_draws):
        tree = drawn(GUIDES["sampling"], (2, 1), first_draw=3 * draw, logits=logits)
        counts[tree.tokens[tree.children(tree.children(0)[1])[0]]] += 1
    assert float((counts / num_draws - logits[1].exp()).abs().max()) < 0.06


def test_where_q_has_fewer_tokens_there_are_fewer_nodes() -> None:
    logits = LOGITS.clone()
    logits[0, 2:] = -torch.inf
    tree = drawn(GUIDES["sampling"], (3, 2), logits=logits)
    assert [list(tree.depths).count(depth) for depth in range(3)] == [1, 2, 4]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_depth": 0}, {"max_depth": 4}, {"top_k": 0}, {"min_confidence": 2.0}, {"draw": "best"},
        {"profile": (1, 0)}, {"profile": (1,) * 4}, {"tree": [[0, 0]]}, {"tree": [[0], [-1]]},
    ],
)  # fmt: skip
def test_settings_that_make_no_tree_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Medusa(unfitted(model_of("llama", "float64")), **wrong)
