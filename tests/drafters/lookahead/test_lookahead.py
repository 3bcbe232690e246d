"""Lookahead: the window is Jacobi iteration, its n-grams are found again, budgets are kept."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from families import FAMILIES, prompt_inputs
from matrix import SAMPLINGS, letters, model_of

import mmspec
from mmspec.calibration import Calibration
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.draft_guide import DraftGuide
from mmspec.drafters.base import Drafter
from mmspec.drafters.lookahead import Lookahead
from mmspec.drafters.lookahead.harvest import Harvest
from mmspec.drafters.lookahead.pool import NgramPool
from mmspec.drafters.lookahead.session import LookaheadSession
from mmspec.drafters.lookahead.trie import NgramTrie
from mmspec.drafters.lookahead.window import Window
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.engine import Engine
from mmspec.errors import ConfigError
from mmspec.requests import Request
from mmspec.state import Prefill, Prices, Prompt, Scores, Verdict
from mmspec.target import Target
from mmspec.tree import TokenTree


class Seen(NamedTuple):
    """A session at a proposal."""

    text: list[int]
    columns: list[list[int]]
    tree: TokenTree


class Watched(Lookahead):
    """Lookahead that keeps what it proposed, and by which window."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.seen: list[Seen] = []
        self.guide: DraftGuide | None = None

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> LookaheadSession:
        session, propose = super().start(prompt, prefill, guide), LookaheadSession.propose
        self.guide = guide

        def proposed(tokens: Sequence[int], budget: int) -> TokenTree:
            tree = propose(session, tokens, budget)
            columns = [list(column) for column in session.window.columns]
            self.seen.append(Seen(list(tokens), columns, tree))
            return tree

        session.propose = proposed  # type: ignore[method-assign]
        return session


def engine_of(*drafters: Drafter, family: str = "llama", **decode: Any) -> Engine:
    config = Config(
        decode=DecodeConfig(**{"controller": "fixed", **decode}), cache=CacheConfig(prefix_bytes=0)
    )
    return mmspec.load(model_of(family, "float64"), letters(), config=config, drafter=drafters)


def request_of(sampling: str = "greedy", *, family: str = "llama", tokens: int = 24) -> Request:
    inputs = prompt_inputs(FAMILIES[family], "text", num_text_tokens=30)
    return Request(inputs, max_new_tokens=tokens, seed=5, **SAMPLINGS[sampling])


# LAW: the window's shape


def window() -> Window:
    """Columns a c f, ... of the picture in `window`; what is new is 0."""
    made = Window(3, 3, lambda count: [0] * count)
    made.columns = [[9, 3, 6], [1, 4, 7], [2, 5, 8]]
    return made


def test_a_columns_path_is_the_trunk_down_to_it_and_then_its_own_levels() -> None:
    assert window().paths(3) == [(3, 6), (1, 4, 7), (1, 2, 5, 8)]
    assert window().paths(1) == [(3, 6)]


def test_a_step_drops_the_oldest_level_and_moves_on_by_the_tokens_accepted() -> None:
    moved = window()
    assert moved.advance([11, 12, None], 1) == [(9, (3, 6, 11)), (1, (4, 7, 12))]
    assert moved.columns == [[3, 6, 11], [4, 7, 12], [5, 8, 0]]
    assert moved.advance([21, 22, 23], 3) == [(3, (6, 11, 21)), (4, (7, 12, 22)), (5, (8, 0, 23))]
    assert moved.columns == [[8, 0, 23], [0, 0, 0], [0, 0, 0]]


def test_text_that_it_was_not_asked_about_moves_the_window_on() -> None:
    moved = window()
    moved.skip(2)
    assert moved.columns == [[2, 5, 8], [0, 0, 0], [0, 0, 0]]
    moved.skip(7)
    assert moved.columns == [[0, 0, 0]] * 3


def test_the_pool_keeps_the_newest_of_each_first_token() -> None:
    pool = NgramPool(2)
    for tail in ((1, 1), (2, 2), (1, 1), (3, 3)):
        pool.add(7, tail, was_read=False)
    assert [guess.tail for guess in pool.after(7)] == [(3, 3), (1, 1)] and pool.after(8) == []
    for first in range(20_000):
        pool.add(first, (1, 1), was_read=False)
    assert len(pool) <= 4096 * 2 and pool.after(7) == []


def test_an_ngram_that_the_text_has_is_not_the_windows_merit() -> None:
    pool = NgramPool(3)
    for first, was_read in ((1, True), (1, False), (2, False), (2, True), (3, False)):
        pool.add(first, (4, 5), was_read=was_read)
    assert [pool.after(first)[0].was_read for first in (1, 2, 3)] == [True, True, False]


def test_newer_ngrams_are_believed_more_and_what_no_text_had_is_the_windows_merit() -> None:
    trie = NgramTrie(1, "lookahead", Calibration())
    for rank in range(6):
        trie.add_guess((10 + rank, 5), rank=rank, was_read=rank != 2)
    trie.add_guess((10, 6), rank=6, was_read=False)
    trie.add_guess((12, 5), rank=7, was_read=True)  # the text has it, too
    trie.add_window([(7,), (11, 8)])
    built = trie.proposal
    tree = built.tree
    first = [tree.confidence[tree.child(0, 10 + rank) or 0] for rank in range(6)]
    assert first[:5] == sorted(set(first[:5]), reverse=True) and first[4] == first[5]
    merits = {tree.tokens[node] for node in range(tree.num_nodes) if built.found[node]}
    assert merits == {6, 7, 8}
    assert {tree.tokens[node] for node in tree.scouts} == {7, 8, 11}


@pytest.mark.parametrize("wrong", [{"window": 0}, {"ngram": 1}, {"guess_set": 0}])
def test_settings_that_make_no_window_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Lookahead(**wrong)


# ORACLE: Jacobi iteration by hand


def jacobi(seen: Seen, guide: DraftGuide) -> list[list[int]]:
    """One step more of each column: what the model says after the text, the trunk down to the
    column and the column's own levels, one forward each."""
    model, stepped = model_of("llama", "float64"), list[list[int]]()
    for place, column in enumerate(seen.columns):
        text = [*seen.text, *(other[0] for other in seen.columns[1 : place + 1]), *column[1:]]
        with torch.no_grad():
            logits = model(torch.tensor([text])).logits[0, -1:]
        scores = guide.warp(logits) + guide.noise_at([len(text)], logits.shape[-1])
        stepped.append([*column[1:], int(scores.argmax())])
    return stepped


def compared(drafter: Watched, last: int) -> int:
    """Columns of all steps that were compared with Jacobi iteration by hand, none of them wrong;
    of steps before the text has `last` tokens: the end of its room cuts the window."""
    assert drafter.guide is not None
    count = 0
    for before, after in zip(drafter.seen, drafter.seen[1:], strict=False):
        moved = len(after.text) - len(before.text) - 1
        stepped = jacobi(before, drafter.guide)[moved:] if len(after.text) < last else []
        if stepped:
            stepped[0][0] = after.text[-1]  # node 0's own token is known by now
        assert after.columns[: len(stepped)] == stepped, f"after {len(after.text)} tokens"
        count += len(stepped)
    return count


@pytest.mark.parametrize("choosing", ["host", "device"])
@pytest.mark.parametrize("sampling", ["greedy", "t1"])
def test_the_window_is_jacobi_iteration(sampling: str, choosing: str) -> None:
    drafter = Watched(window=4, ngram=4, guess_set=3, pool_from_prompt=False)
    engine_of(drafter, max_nodes=32, choosing=choosing).generate(request_of(sampling))
    assert compared(drafter, 46) > 40


def test_the_window_is_the_same_beside_another_drafters_tree() -> None:
    """Its nodes stand elsewhere in the merged tree, and some are the other's as well."""
    drafter = Watched(window=4, ngram=4, guess_set=3)
    beside = PromptLookup(min_match=1, min_confidence=0.0, max_depth=6)
    engine_of(beside, drafter, max_nodes=24).generate(request_of())
    assert compared(drafter, 46) > 30


# LAW: the window is scored as long as it pays

FREE, FAIR, DEAR = (Prices(token_s=1.0, node_s=node_s) for node_s in (0.0, 0.02, 0.5))


def test_a_window_that_brings_nothing_is_left_out_where_nodes_cost_time() -> None:
    for prices, pays in ((None, True), (FREE, True), (FAIR, False), (DEAR, False)):
        harvest, asked = Harvest(), list[bool]()
        for _ in range(40):
            asked.append(harvest.pays(prices, nodes=4))
            harvest.observe(0, 15 if asked[-1] else 0)
        assert asked[0] == (prices is not DEAR)
        assert all(asked) == pays, f"{prices}: {asked}"
    assert sum(asked) < 10


def test_a_window_that_brings_tokens_stays_and_hope_comes_back() -> None:
    harvest = Harvest()
    for _ in range(40):
        assert harvest.pays(FAIR, nodes=4)
        harvest.observe(2, 15)
    for _ in range(40):
        harvest.observe(0, 15)
    waited = [harvest.pays(FAIR, nodes=4) for _ in range(300)]
    assert not waited[0] and waited[-1]


@pytest.mark.parametrize(("prices", "has_window"), [(FREE, True), (DEAR, False), (None, True)])
def test_prices_decide_on_the_window_and_not_on_what_the_text_says(
    prices: Prices | None, has_window: bool
) -> None:
    guide = DraftGuide(is_greedy=True, seed=0, sample=0, prompt_length=8)
    session = LookaheadSession(Lookahead(ngram=3), Prompt(torch.tensor([5, 6, 7] * 4)), guide)
    session.prices = prices
    tree = session.propose([5, 6, 7] * 4, 64)
    assert tree.child(0, 5) is not None, "what followed 7 before"
    assert (len(tree.scouts) > 2) == has_window


@pytest.mark.parametrize("choosing", ["host", "device"])
@pytest.mark.parametrize("reads", [True, False])
def test_what_the_text_says_is_not_the_windows_merit(reads: bool, choosing: str) -> None:
    """Of a text in circles, tokens 0 to 2, all is accepted: found by the window, or read before."""
    guide = DraftGuide(is_greedy=True, seed=0, sample=0, prompt_length=12)
    text, says = [0, 1, 2] * 4, [1, 2, 0]
    lookahead = Lookahead(window=1 if reads else 6, ngram=3, pool_from_prompt=reads)
    session = LookaheadSession(lookahead, Prompt(torch.tensor(text)), guide)
    trees = list[TokenTree]()
    for _ in range(40):
        session.prices = Prices(token_s=1.0, node_s=0.04)
        trees.append(tree := session.propose(text, 16))
        path = [0]
        while (node := tree.child(path[-1], says[tree.tokens[path[-1]]])) is not None:
            path.append(node)
        chosen = tuple(says[tree.tokens[node]] for node in path)
        logits = torch.eye(3)[[says[token] for token in tree.tokens]]
        choice = None if choosing == "host" else lambda path: says[path[-1]]
        session.observe(tree, Verdict(tuple(path), chosen), Scores(logits, choice=choice))
        text += chosen
    assert len(text) > 100, "hardly anything was drafted"
    assert trees[0].scouts and bool(trees[-1].scouts) == (not reads)


# LAW: what comes of it


def forgetful() -> Any:
    """A model that sees the last token alone, so that its greedy text goes in circles."""
    model = FAMILIES["llama"].build(torch.float64)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    return model


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"window": 6, "pool_from_prompt": False}, 2.5),  # what the window finds alone
        ({"window": 1}, 2.5),  # what the text says alone
        ({"window": 15, "ngram": 5, "guess_set": 15}, 3.0),
    ],
)
def test_a_text_in_circles_is_drafted_by_ngrams(settings: dict[str, Any], least: float) -> None:
    drafter = Lookahead(**{"ngram": 4, "guess_set": 6, **settings})
    config = Config(decode=DecodeConfig(controller="fixed"))
    engine = mmspec.load(forgetful(), letters(), config=config, drafter=drafter)
    result = engine.generate(request_of(tokens=120))
    assert result.tokens == engine.generate(request_of(tokens=120), speculate=False).tokens
    assert result.stats.tokens_per_step > least


@pytest.mark.parametrize("budget", [0, 1, 2, 3, 4, 7, 8, 15, 31, 64])
def test_a_smaller_budget_has_fewer_columns(budget: int) -> None:
    drafter = Watched(window=15, ngram=5, guess_set=15)
    engine_of(drafter, max_nodes=budget).generate(request_of(tokens=12))
    for seen in drafter.seen:
        tree = seen.tree
        tree.check_integrity()
        assert tree.num_nodes - 1 <= budget
        assert len(tree.scouts) >= min(budget // 2, 59) // 4 * 4 - 1, "half is the window's"
    assert bool(drafter.seen) == (budget > 0)


def test_a_model_that_scores_chains_only_gets_one_path() -> None:
    drafter = Watched(window=4, ngram=4)
    model = model_of("llama", "float64")
    engine = Engine(
        Target(model), None, [drafter], controller="fixed", fit=TokenTree.best_chain, max_nodes=16
    )
    plain = engine.generate(request_of(), speculate=False)
    result = engine.generate(request_of())
    assert result.tokens == plain.tokens and drafter.seen
    assert result.stats.steps < plain.stats.steps


def test_no_placeholder_of_an_image_is_guessed() -> None:
    drafter = Watched(window=4, ngram=4)
    engine = engine_of(drafter, family="qwen2_vl", max_nodes=24)
    inputs = prompt_inputs(FAMILIES["qwen2_vl"], "image_last", num_text_tokens=20)
    ids = inputs["input_ids"][0].tolist()
    placeholder = max(set(ids), key=ids.count)
    result = engine.generate(Request(inputs, max_new_tokens=8, temperature=0.0))
    first = drafter.seen[0].tree  # before the target itself has said anything of the window
    assert placeholder not in first.tokens[1:] and len(result.tokens) == 8
