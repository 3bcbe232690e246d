"""Trees that grow together are those that each row would grow alone, node by node, from a table."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.draw import draw_level
from mmspec.drafters.forwards import ForwardCost
from mmspec.drafters.growing import together
from mmspec.drafters.growing.branching import affordable
from mmspec.drafters.growing.settings import Draw, TreeOptions, TreeSettings
from mmspec.drafters.growing.trees import GrowingTrees, Start
from mmspec.drafters.model_session import ModelSession
from mmspec.noise import DRAFT_STREAM
from mmspec.reads import read
from mmspec.state import Placement, Scores, Verdict
from mmspec.tree import TokenTree

VOCAB, SPREAD = 7, 0.7
Path = tuple[int, ...]


def said(path: Path) -> Tensor:
    """(vocab,) the logits behind a text."""
    draw = torch.Generator().manual_seed(hash(path) % 2**63)
    return 2.0 * torch.randn(VOCAB, generator=draw)


@dataclass
class Table:
    """Scores trees by the table; it knows what was written, as a cache does."""

    written: dict[int, list[int]] = field(default_factory=dict)  # row -> tokens
    calls: int = 0

    def score(
        self,
        trees: Sequence[TokenTree],
        cache: Any,
        placements: Sequence[Placement],
        *,
        written: Sequence[int] = (),
        ids: Tensor | None = None,
    ) -> list[Scores]:
        self.calls += 1
        scores = []
        for index, (tree, place, old) in enumerate(zip(trees, placements, written, strict=True)):
            tokens = self.written.setdefault(place.row, [])
            assert len(tokens) == old, "what was written is not what is said to be"
            tokens += tree.tokens[old:] if ids is None else ids[index].tolist()
            rows = [
                said(tuple(tokens[n] for n in tree.path_to(node)))
                for node in range(old, tree.num_nodes)
            ]
            scores.append(Scores(torch.stack(rows)))
        return scores


def guide(*, is_greedy: bool) -> DraftGuide:
    return DraftGuide(is_greedy=is_greedy, seed=5, sample=0, prompt_length=2)


def session(guide: DraftGuide, *, draws: bool = False) -> ModelSession[Any]:
    return ModelSession(SimpleNamespace(cost=ForwardCost(), draws=draws), guide)


def proposed(
    settings: TreeSettings,
    sessions: Sequence[ModelSession[Any]],
    texts: Sequence[Path],
    chains: Sequence[int],
    budget: int,
    *,
    is_coupled: bool = True,
) -> tuple[list[TokenTree], Table]:
    """`chains`: how many of each text's newest tokens are not in the cache."""
    table = Table()
    trees = GrowingTrees(settings, ForwardCost(), "test", VOCAB, is_coupled=is_coupled)
    starts = [
        Start(Placement(row, (0,)), text[-size:])
        for row, (text, size) in enumerate(zip(texts, chains, strict=True))
    ]
    cache: Any = None
    found = trees.grown(table, cache, sessions, texts, starts, budget)
    for tree in found:
        tree.check_integrity(VOCAB)
    return found, table


def paths(tree: TokenTree) -> dict[Path, float]:
    """Each node's tokens below node 0, and how likely all of them are accepted."""
    return {
        tuple(tree.tokens[n] for n in tree.path_to(node)[1:]): tree.cumulative_confidence[node]
        for node in range(1, tree.num_nodes)
    }


def ranked(guide: DraftGuide, chain: Path, path: Path, index: int, top_k: int) -> dict[int, float]:
    """Of a node, its `top_k` children with what is believed of them."""
    values = said((*chain, *path)).log_softmax(-1)
    if not guide.is_greedy:
        values = values + guide.noise_at([index + len(path) + 1], VOCAB)[0]
    best = values.topk(min(top_k + 1, VOCAB))
    beliefs = best.values.exp() if guide.is_greedy else (best.values / SPREAD).softmax(-1)
    pairs = zip(best.indices.tolist(), beliefs.tolist(), strict=True)
    return dict(list(pairs)[:top_k])


def grown_alone(
    settings: TreeSettings, guide: DraftGuide, text: Path, chain: int, budget: int
) -> dict[Path, float]:
    """Level by level: of each the `width` likeliest nodes go on that are among the `budget`
    likeliest of all; at last these are kept."""
    least, likely = settings.min_confidence, {(): 1.0}
    level: list[Path] = [()]
    for _ in range(min(settings.max_depth, budget)):
        below: list[Path] = []
        for path in level:
            children = ranked(guide, text[-chain:], path, len(text) - 1, settings.top_k)
            for token, belief in children.items():
                likely[*path, token] = likely[path] * belief
                below.append((*path, token))
        best = sorted(list(likely)[1:], key=lambda path: -likely[path])[:budget]
        level = sorted(below, key=lambda path: -likely[path])[: settings.width]
        level = [path for path in level if path in best and likely[path] >= least]
        if not level:
            break
    kept = sorted(list(likely)[1:], key=lambda path: -likely[path])[:budget]
    return {path: likely[path] for path in kept if likely[path] >= least}


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.05, 0.2]),
    st.integers(1, 9),
    st.booleans(),
    st.lists(st.tuples(st.integers(2, 9), st.integers(1, 3)), min_size=1, max_size=3),
)
def test_rows_that_grow_together_grow_as_alone(
    top_k: int,
    width: int,
    max_depth: int,
    least: float,
    budget: int,
    is_greedy: bool,
    rows: list[tuple[int, int]],
) -> None:
    settings = TreeSettings.checked(
        "test", {}, max_depth=max_depth, top_k=top_k, width=width, min_confidence=least
    )
    own = guide(is_greedy=is_greedy)
    texts = [tuple((row + n) % VOCAB for n in range(size)) for row, (size, _) in enumerate(rows)]
    chains = [min(chain, size) for size, chain in rows]
    trees, _ = proposed(settings, [session(own) for _ in rows], texts, chains, budget)
    for tree, text, chain in zip(trees, texts, chains, strict=True):
        assert tree.tokens[0] == text[-1] and set(tree.drafters[1:]) <= {"test"}
        found, expected = paths(tree), grown_alone(settings, own, text, chain, budget)
        assert found.keys() == expected.keys()
        assert list(found.values()) == pytest.approx([expected[path] for path in found])


@pytest.mark.parametrize("is_coupled", [True, False])
def test_a_node_is_believed_in_as_those_of_its_rank_have_turned_out(is_coupled: bool) -> None:
    """But for trees in another tokenizer's tokens, of which nobody tells what became of them."""
    settings = TreeSettings.checked("test", {}, max_depth=1, top_k=2, min_confidence=0.0)
    one, beliefs = session(guide(is_greedy=True)), list[tuple[float, ...]]()
    for _ in range(40):
        (tree,), _ = proposed(settings, [one], [(1, 2, 3)], [1], 9, is_coupled=is_coupled)
        beliefs.append(tree.confidence[1:])
        one.observe(tree, Verdict((0, 1), (tree.tokens[1], 0)), Scores(torch.empty(0)))
    if is_coupled:
        assert beliefs[-1][0] > 0.9 > beliefs[0][0] and beliefs[-1][1] < 0.1 < beliefs[0][1]
    else:
        assert beliefs[-1] == beliefs[0]


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 9))
def test_drawn_trees_have_the_shape_that_was_set_and_noise_of_their_own(
    profile: list[int], budget: int
) -> None:
    options: TreeOptions = {"draw": "sample", "profile": profile}
    settings = TreeSettings.checked("test", options, max_depth=1, top_k=1, min_confidence=0.0)
    own, text = guide(is_greedy=False), (1, 2, 3)
    one = session(own, draws=True)
    for _ in range(2):  # the second proposal draws anew
        before = one.num_draws
        (tree,), _ = proposed(settings, [one], [text], [2], budget)
        shape, level, node, draws = affordable(profile, budget), [0], 0, 0
        assert tree.q is not None
        for depth, count in enumerate(shape, start=1):
            below = []
            for parent in level:
                path = tuple(tree.tokens[n] for n in tree.path_to(parent)[1:])
                logits = said((*text[-2:], *path))
                stream = DRAFT_STREAM + before + draws
                place = own.place(len(text) - 1 + depth, stream=stream)
                drawing = draw_level(logits[None], count, [place])
                children = tree.children(parent)
                assert [tree.tokens[child] for child in children] == drawing.tokens[0].tolist()
                torch.testing.assert_close(tree.q[parent], drawing.q[0])
                below += children
                draws += 1
            level = below
            node += len(level)
        assert tree.num_nodes == node + 1 <= budget + 1
        assert one.num_draws == before + draws
        leaves = [n for n in range(tree.num_nodes) if not tree.children(n)]
        assert not tree.q[leaves].any()


@pytest.mark.parametrize("draw", ["coupled", "sample"])
def test_a_chain_that_no_belief_can_end_is_read_once(
    draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One wait for all rows, whatever their lengths; the same chains as with one a level."""
    waits, own, texts = list[int](), guide(is_greedy=False), [(1, 2, 3), (4, 5)]

    def counted(*tensors: Tensor) -> list[Any]:
        waits.append(len(tensors))
        return read(*tensors)

    monkeypatch.setattr(together, "read", counted)
    options: TreeOptions = {"draw": draw}
    settings = TreeSettings.checked("test", options, max_depth=4, top_k=1, min_confidence=0.0)
    sessions = [session(own, draws=draw == "sample") for _ in range(2)]
    found, table = proposed(settings, sessions, texts, [2, 1], 9)
    assert len(waits) == 1 and table.calls == 4 and all(tree.num_nodes == 5 for tree in found)
    if draw == "coupled":
        settings = replace(settings, min_confidence=1e-9)
        assert proposed(settings, sessions, texts, [2, 1], 9)[0] == found
        assert len(waits) == 1 + 4, "a belief may end it at each level"


@given(st.lists(st.integers(1, 4), max_size=4), st.integers(0, 30))
def test_of_a_profile_stays_what_the_budget_has_room_for(profile: list[int], budget: int) -> None:
    kept, nodes, level = affordable(profile, budget), 0, 1
    for wanted, children in zip(profile, kept, strict=False):
        room = (budget - nodes) // level
        assert children == min(wanted, room) >= 1
        level *= children
        nodes += level
    assert nodes <= budget
    if len(kept) < len(profile):
        assert (budget - nodes) // level < 1, "one level more had no room for a node each"
