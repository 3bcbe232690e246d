"""prompt_lookup: a tree of what followed earlier, never a placeholder, never over the budget."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.base import DraftSession
from mmspec.drafters.own_text import SEPARATOR, OwnText, prompt_tokens
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.drafters.retrieval.session import RetrievalSession
from mmspec.errors import ConfigError
from mmspec.state import MediaSpan, Placement, Prefill, Prompt, Scores, Verdict
from mmspec.tree import TokenTree

GUIDE = DraftGuide(is_greedy=True, seed=0, sample=0, prompt_length=0)
texts = st.lists(st.integers(0, 4), min_size=1, max_size=40)


def started(
    text: Sequence[int], media: tuple[MediaSpan, ...] = (), **options: float
) -> RetrievalSession:
    """A session whose prompt is `text`; by default every node is confident enough."""
    drafter = PromptLookup(**{"min_confidence": 0.0, "min_match": 1, **options})
    prefill = Prefill(torch.zeros(1), Placement(0, (0,)))
    return drafter.start(Prompt(torch.tensor(text), media=media), prefill, GUIDE)


def paths(tree: TokenTree) -> set[tuple[int, ...]]:
    """The tokens below node 0 on the way to each node."""
    nodes = range(1, tree.num_nodes)
    return {tuple(tree.tokens[n] for n in tree.path_to(node)[1:]) for node in nodes}


def observe(session: RetrievalSession, tree: TokenTree, path: tuple[int, ...]) -> None:
    """The target accepted `path`, then went its own way."""
    tokens = (*(tree.tokens[node] for node in path[1:]), 99)
    session.observe(tree, Verdict(path, tokens), Scores(torch.zeros(tree.num_nodes, 1)))


def test_values_that_make_no_sense_are_refused_by_their_names() -> None:
    for name, value in (("max_matches", 0), ("min_match", 0), ("min_match", 33), ("max_match", 0),
                        ("max_depth", 0), ("min_confidence", -1)):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"drafter\.prompt_lookup\.{name}={value}"):
            PromptLookup(**{name: value})
    PromptLookup(max_matches=1, min_match=1, max_match=1, max_depth=1, min_confidence=0.0)
    PromptLookup(min_match=64, max_match=64, min_confidence=1.0)
    assert started([1, 2, 1], max_matches=99).propose([1, 2, 1], 1).tokens == (1, 2)


# LAW


def test_several_occurrences_become_one_tree() -> None:
    #  ... 1 2 5 6 ... 1 2 5 7 ... 1 2 8 ... 1 2 |         2
    #                                                    /   \
    #                                                   5     8
    #                                                  / \
    #                                                 6   7
    text = [1, 2, 5, 6, 30, 1, 2, 5, 7, 31, 1, 2, 8, 32, 1, 2]
    tree = started(text, min_match=2, max_depth=2).propose(text, 24)
    assert tree.tokens[0] == 2, "node 0 is the last token of the text"
    assert paths(tree) == {(5,), (8,), (5, 6), (5, 7), (8, 32)}
    assert set(tree.drafters[1:]) == {"prompt_lookup"}


def test_the_longest_match_comes_first() -> None:
    text = [1, 2, 3, 40, 9, 2, 3, 50, 9, 3, 60, 8, 1, 2, 3]
    tree = started(text, max_depth=1).propose(text, 8)
    assert tree.tokens[1:] == (40, 50, 60)
    assert list(tree.confidence[1:]) == sorted(tree.confidence[1:], reverse=True)
    assert started(text, max_depth=1).propose(text, 1).tokens == (3, 40)


def test_agreement_of_many_makes_more_confident_than_one() -> None:
    once = [1, 2, 5, 30, 1, 2, 6, 31, 1, 2]
    often = [1, 2, 5, 30, 1, 2, 5, 33, 1, 2, 5, 34, 1, 2, 6, 31, 1, 2]
    alone = started(once, max_depth=1).propose(once, 8)
    agreed = started(often, max_depth=1).propose(often, 8)
    assert agreed.confidence[agreed.tokens.index(5)] > alone.confidence[alone.tokens.index(5)]


def test_nothing_seen_before_is_no_draft() -> None:
    text = [1, 2, 3, 4]
    assert started(text).propose(text, 8) == TokenTree.root(4)


def test_a_text_that_ends_in_an_image_has_no_draft() -> None:
    text = [1, 77, 1, 77]
    media = (MediaSpan("image", 1, 2), MediaSpan("image", 3, 4))
    assert started(text, media).propose(text, 8) == TokenTree.root(77)


def test_the_prompt_itself_is_not_changed_by_its_media() -> None:
    prompt = Prompt(torch.tensor([1, 77, 77, 2]), media=(MediaSpan("image", 1, 3),))
    PromptLookup().start(prompt, Prefill(torch.zeros(1), Placement(0, (0,))), GUIDE)
    assert prompt.token_ids.tolist() == [1, 77, 77, 2]
    assert prompt_tokens(prompt) == [1, SEPARATOR, SEPARATOR, 2]


def test_generated_tokens_are_copied_from_too() -> None:
    session = started([1, 2, 3])
    assert session.propose([1, 2, 3, 10, 11, 12], 4) == TokenTree.root(12)
    tree = session.propose([1, 2, 3, 10, 11, 12, 10], 1)
    assert paths(tree) == {(11,)}


@given(texts, st.integers(1, 12), st.sampled_from([0.0, 0.1, 0.3, 0.6]))
def test_budget_and_confidence_are_kept(text: list[int], budget: int, confidence: float) -> None:
    tree = started(text, min_confidence=confidence).propose(text, budget)
    tree.check_integrity()
    assert tree.tokens[0] == text[-1]
    assert tree.num_nodes - 1 <= budget
    assert all(value >= confidence for value in tree.cumulative_confidence)


@given(texts)
def test_every_path_was_seen_after_a_token_like_the_last(text: list[int]) -> None:
    for path in paths(started(text).propose(text, 24)):
        wanted = [text[-1], *path]
        places = range(len(text) - len(wanted) + 1)
        assert any(text[i : i + len(wanted)] == wanted for i in places), f"{wanted} not in {text}"


@given(texts, texts, st.integers(1, 12))
def test_the_tree_does_not_depend_on_how_the_text_came(
    prompt: list[int], output: list[int], budget: int
) -> None:
    whole = prompt + output
    grown = started(prompt)
    for end in range(len(prompt) + 1, len(whole)):
        grown.propose(whole[:end], budget)
    assert grown.propose(whole, budget) == started(whole).propose(whole, budget)


@pytest.mark.parametrize(("accepted", "path"), [(True, (0, 1)), (False, (0,))])
def test_confidence_follows_what_the_target_accepts(accepted: bool, path: tuple[int, ...]) -> None:
    text = [1, 2, 3, 4, 1, 2]
    session = started(text, max_depth=1)
    tree = session.propose(text, 1)
    before = tree.confidence[1]
    for _ in range(3):
        observe(session, tree, path)
        tree = session.propose(text, 1)
        now = tree.confidence[1]
        assert (now > before) is accepted, f"accepted {accepted}: {before} became {now}"
        before = now


def test_rejections_end_in_no_draft_at_all() -> None:
    text = [1, 2, 3, 4, 1, 2]
    session = started(text, min_confidence=0.15)
    for _ in range(50):
        tree = session.propose(text, 4)
        if tree.num_nodes == 1:
            return
        observe(session, tree, (0,))
    pytest.fail(f"after 50 rejections it still proposes {tree.tokens[1:]}")


def test_a_node_whose_parent_was_rejected_teaches_nothing() -> None:
    text = [1, 2, 3, 4, 5, 1, 2]
    session, fresh = started(text), started(text)
    tree = session.propose(text, 3)
    assert tree.tokens == (2, 3, 4, 5)
    observe(session, tree, (0,))
    again, first = session.propose(text, 3), fresh.propose(text, 3)
    assert again.confidence[1] < first.confidence[1]
    assert again.confidence[3] == first.confidence[3], "nobody asked the target about node 3"


def test_what_was_cut_from_the_tree_is_observed_by_its_path() -> None:
    """The loop cuts and prunes: node numbers change, paths do not."""
    #      2               2
    #    /   \           /   \       both children were rejected; nobody asked about
    #   8     5    ->   8     5      what follows them
    #   |     |
    #  32     6
    text = [1, 2, 5, 6, 30, 1, 2, 8, 32, 1, 2]
    session = started(text, min_match=2, max_depth=2)
    tree = session.propose(text, 24)
    observe(session, tree.cut(1), (0,))
    again = session.propose(text, 24)
    assert paths(again) == paths(tree) == {(5,), (8,), (5, 6), (8, 32)}
    for before, now, depth in zip(tree.confidence, again.confidence, again.depths, strict=True):
        assert (now < before) is (depth == 1), f"depth {depth}: {before} became {now}"


def test_sessions_of_one_drafter_share_rates_and_no_text() -> None:
    drafter = PromptLookup(min_match=1, min_confidence=0.0)
    prefill = Prefill(torch.zeros(1), Placement(0, (0,)))

    def started(text: list[int]) -> DraftSession:
        return drafter.start(Prompt(torch.tensor(text)), prefill, GUIDE)

    taught, other = started([1, 2, 3, 4, 1, 2]), started([1, 2, 7, 8, 1, 2])
    before = other.propose([1, 2, 7, 8, 1, 2], 2)
    for _ in range(9):
        observe(taught, taught.propose([1, 2, 3, 4, 1, 2], 2), (0,))
    after = other.propose([1, 2, 7, 8, 1, 2], 2)
    assert before.tokens == after.tokens == (2, 7, 8)
    assert after.confidence[1] < before.confidence[1] / 2, "such copies were not taken"


@pytest.mark.parametrize(
    ("taught", "asked", "is_alike"),
    [(1, 1, True), (1, 2, False), (2, 3, True), (3, 4, False), (4, 9, True)],
)
def test_copies_of_about_as_many_places_are_learnt_of_together(
    taught: int, asked: int, is_alike: bool
) -> None:
    drafter = PromptLookup(min_match=1, min_confidence=0.0, max_depth=1)
    prefill = Prefill(torch.zeros(1), Placement(0, (0,)))

    def proposed(places: int) -> tuple[RetrievalSession, TokenTree]:
        text = [token for n in range(places) for token in (1, 2, 5, 100 + n)] + [1, 2]
        session = drafter.start(Prompt(torch.tensor(text)), prefill, GUIDE)
        return session, session.propose(text, 1)

    before = proposed(asked)[1].confidence[1]
    session, tree = proposed(taught)
    observe(session, tree, (0,))
    assert (proposed(asked)[1].confidence[1] < before) is is_alike


def test_a_deeper_copy_is_believed_as_a_longer_match() -> None:
    """Each copied token is one more that agreed: 2 tokens behind a match of 1 are a match of 2."""
    text = [1, 2, 3, 4, 9, 1]
    tree = started(text, max_depth=3).propose(text, 3)
    rates = list(tree.confidence[1:])
    assert rates == sorted(rates) and len(set(rates)) == 3
    longer = [8, 1, 2, 9, 8, 1]
    assert started(longer, max_depth=1).propose(longer, 1).confidence[1] == rates[1]
    drafter = PromptLookup(min_match=1, min_confidence=0.0, max_depth=2)
    prefill = Prefill(torch.zeros(1), Placement(0, (0,)))
    sessions = [drafter.start(Prompt(torch.tensor(one)), prefill, GUIDE) for one in (longer, text)]
    before = sessions[1].propose(text, 2)
    observe(sessions[0], sessions[0].propose(longer, 1), (0,))
    after = sessions[1].propose(text, 2)
    assert (
        after.confidence[1] == before.confidence[1] and after.confidence[2] < before.confidence[2]
    )


def test_of_two_copies_the_one_that_is_taken_more_often_comes_first() -> None:
    """Whatever the match: the longer one is refused until it is believed less."""
    text = [1, 2, 3, 4, 40, 9, 4, 50, 8, 1, 2, 3, 4]
    session = started(text, max_depth=1)
    tree = session.propose(text, 1)
    assert tree.tokens == (4, 40)
    for _ in range(40):
        observe(session, tree, (0,))
        tree = session.propose(text, 1)
        if tree.tokens == (4, 50):
            return
    pytest.fail("40 is still believed more than 50")


def test_a_step_that_it_was_not_asked_at_teaches_nothing() -> None:
    text = [1, 2, 3, 4, 1, 2]
    once, twice, back = (started(text, max_depth=1) for _ in range(3))
    untold = started(text, max_depth=1).propose(text, 1).confidence
    trees = [session.propose(text, 1) for session in (once, twice, back)]
    back.take_back(len(text))  # what became of that is not told
    for session, tree in zip((once, twice, twice, back), (*trees[:2], *trees[1:]), strict=True):
        observe(session, tree, (0,))
    found = [session.propose(text, 1).confidence for session in (once, twice, back)]
    assert found[0] == found[1] != untold and found[2] == untold


def test_texts_beside_the_prompt_are_apart_and_stay_when_a_draft_is_taken_back() -> None:
    drafter = PromptLookup(min_match=1, min_confidence=0.0)
    prompt = Prompt(torch.tensor([9, 1, 2]), draft_texts=((5, 1, 2), (3, 4, 2, 6)))
    prefill = Prefill(torch.zeros(1), Placement(0, (0,)))
    session = drafter.start(prompt, prefill, GUIDE)
    first = session.propose([9, 1, 2], 8)
    assert paths(first) == {(6,)}, "no copy runs from one text into the next"
    assert session.propose([9, 1, 2, 7, 2], 1).tokens == (2, 7)
    session.take_back(3)
    assert session.propose([9, 1, 2], 8) == first
    own = OwnText(prompt)
    assert own.tail(64) == [], "nothing is indexed"
    own.grow([9, 1, 2])
    assert own.tail(64) == [9, 1, 2] and own.tail(2) == [1, 2] and own.tail(0) == []
