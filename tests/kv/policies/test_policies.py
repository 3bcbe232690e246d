"""Each policy on cases small enough to say by hand which positions it must keep."""

from collections.abc import Sequence

import pytest
import torch

from mmspec.kv.policies import POLICIES, Composed, LayerState, SnapKV, TopKChunks, Visual, Window
from mmspec.kv.policies.base import Policy, marked, received_attention
from mmspec.kv.queries import NewestQueries

TOKENS = 20


def state(
    first_head: Sequence[int] = (),
    second_head: Sequence[int] = (),
    *,
    queries: int = 2,
    media: Sequence[range] = (),
) -> LayerState:
    """Two KV heads, each looked at by two query heads, which look for the tokens given: for the
    first of them most, and far less for each one after it."""
    keys = torch.zeros(TOKENS, 2, 4)
    for head, wanted in enumerate((first_head, second_head)):
        for rank, token in enumerate(wanted):
            keys[token, head, head] = 40.0 - 8 * rank
    states = torch.zeros(queries, 4, 4)
    states[:, :2, 0] = states[:, 2:, 1] = 1.0
    return LayerState(keys, NewestQueries(states, 0.5), media)


def kept(policy: Policy, layer: LayerState, budget: int) -> list[list[int]]:
    return policy.choose(layer, budget).tolist()


def test_window_keeps_sinks_and_newest() -> None:
    assert kept(Window(sinks=2), state(), 5) == [[0, 1, 17, 18, 19]]
    assert kept(Window(sinks=4), state(), 3) == [[0, 1, 2]]


def test_snapkv_keeps_what_each_head_attends_to_with_its_neighbours_and_the_window() -> None:
    policy, layer = SnapKV(watched_queries=2, kernel=3), state([5], [9, 3])
    assert kept(policy, layer, 5) == [[4, 5, 6, 18, 19], [8, 9, 10, 18, 19]]
    assert kept(policy, layer, 8)[1] == [2, 3, 4, 8, 9, 10, 18, 19]
    # Half of the budget is the window's at most.
    assert kept(SnapKV(watched_queries=8, kernel=1), layer, 2) == [[5, 19], [9, 19]]


def test_topk_chunks_keeps_the_first_chunk_the_newest_tokens_and_the_best_by_mean_key() -> None:
    policy = TopKChunks(chunk=4, newest=2)
    # Chunks 0-3, 4-7, 8-11, 12-15; 16 and 17 lie between them and the newest two.
    assert kept(policy, state([9], [5]), 10) == [
        [0, 1, 2, 3, 8, 9, 10, 11, 18, 19],
        [0, 1, 2, 3, 4, 5, 6, 7, 18, 19],
    ]
    # One loud token, its neighbours silent, loses against four that are a bit less loud.
    assert kept(policy, state([9, 4, 5, 6, 7]), 10)[0] == [0, 1, 2, 3, 4, 5, 6, 7, 18, 19]
    # What is left over of the budget goes to newer tokens.
    assert kept(policy, state([9]), 12)[0] == [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]


def test_topk_chunks_looks_with_the_newest_queries_alone() -> None:
    layer = state([9], [9], queries=2)
    assert layer.queries is not None
    layer.queries.states[0] = torch.roll(layer.queries.states[0], 2, dims=0)  # looks elsewhere
    layer.keys[5, :, :2] = layer.keys[9, :, :2].flip(-1)
    policy = TopKChunks(chunk=4, newest=2, watched_queries=1)
    assert kept(policy, layer, 10)[0] == [0, 1, 2, 3, 8, 9, 10, 11, 18, 19]


def test_visual_keeps_text_the_most_attended_of_media_and_an_even_share_of_the_rest() -> None:
    layer = state([7], [12, 6], media=[range(3, 15)])
    text, policy = [0, 1, 2, 15, 16, 17, 18, 19], Visual(attended_share=0.25)
    first, second = kept(policy, layer, 16)
    assert set(text) < set(first) and 7 in first
    # 8 of the image's 12: 6 and 12, and of 3 4 5 7 8 9 10 11 13 14 the middles of six stretches.
    assert sorted(set(second) - set(text)) == [3, 5, 6, 8, 9, 11, 12, 14]
    # Of a small budget text has half: sinks and newest.
    assert sorted(set(kept(Visual(sinks=2), layer, 8)[1]) & set(text)) == [0, 1, 18, 19]


def test_visual_without_attention_thins_evenly_and_without_media_is_a_window() -> None:
    layer = LayerState(torch.zeros(TOKENS, 2, 4), None, [range(4, 8), range(10, 14)])
    media = [p for p in kept(Visual(), layer, 8)[0] if 4 <= p < 8 or 10 <= p < 14]
    assert media == [5, 7, 11, 13]
    assert kept(Visual(sinks=2), state(), 5) == kept(Window(sinks=2), state(), 5)


def test_composed_keeps_what_its_parts_keep_and_fills_up_with_the_newest() -> None:
    policy = Composed([Window(sinks=2), SnapKV(watched_queries=2, kernel=1)])
    # 0 1 18 19 of the window; 7 5 18 19 of the other: two places are left, for 16 and 17.
    assert kept(policy, state([7, 5], [7, 5]), 8) == [[0, 1, 5, 7, 16, 17, 18, 19]] * 2
    assert (policy.watched_queries, policy.refresh_every) == (2, None)
    pacing = Composed([Window(), TopKChunks(refresh_every=3), TopKChunks(refresh_every=5)])
    assert pacing.refresh_every == 3


def test_attention_is_causal_and_sums_to_one() -> None:
    """The oracle is attention with a mask, head by head."""
    torch.manual_seed(0)
    layer = LayerState(torch.randn(9, 2, 4), NewestQueries(torch.randn(3, 4, 4), 0.7))
    expected = torch.zeros(2, 9)
    assert layer.queries is not None
    for query, states in enumerate(layer.queries.states):
        for head in range(4):
            seen = layer.keys[: 7 + query, head // 2]
            weights = torch.softmax(seen @ states[head] * 0.7, dim=0)
            expected[head // 2, : 7 + query] += weights / 6
    torch.testing.assert_close(received_attention(layer, layer.queries), expected)
    torch.testing.assert_close(expected.sum(dim=1), torch.ones(2))


def test_only_every_so_manieth_query_is_asked_the_last_one_among_them() -> None:
    torch.manual_seed(5)
    layer = LayerState(torch.randn(20, 2, 4), NewestQueries(torch.randn(6, 4, 4), 0.5))
    assert layer.queries is not None
    each = [
        received_attention(
            LayerState(layer.keys[: 20 - 5 + index]),
            NewestQueries(layer.queries.states[index : index + 1], 0.5),
        )
        for index in (1, 3, 5)
    ]
    padded = [torch.nn.functional.pad(share, (0, 20 - share.shape[1])) for share in each]
    expected = torch.stack(padded).mean(dim=0)
    torch.testing.assert_close(received_attention(layer, layer.queries, every=2), expected)


def test_marked_fills_each_head_with_its_own_newest() -> None:
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, [0, 5]] = mask[1, 2] = True
    assert marked(mask, 3).tolist() == [[0, 4, 5], [2, 4, 5]]


@pytest.mark.parametrize("name", [*POLICIES, "composed"])
@pytest.mark.parametrize("tokens", [1, 7, 8, 16, 61])
@pytest.mark.parametrize("is_seen", [True, False])
def test_a_choice_has_the_size_asked_for_is_increasing_and_within_the_text(
    name: str, tokens: int, is_seen: bool
) -> None:
    policy = Composed([Window(), TopKChunks()]) if name == "composed" else POLICIES[name]()
    torch.manual_seed(tokens)
    seen = min(policy.watched_queries, tokens)
    queries = NewestQueries(torch.randn(seen, 4, 4), 0.5) if is_seen and seen else None
    media = [range(tokens // 4, tokens // 2), range(tokens // 2, tokens // 2 + tokens // 4)]
    layer = LayerState(torch.randn(tokens, 2, 4), queries, media)
    for budget in {1, min(5, tokens), tokens // 2 + 1, tokens}:
        chosen = policy.choose(layer, budget)
        assert chosen.shape in ((1, budget), (2, budget))
        assert bool((chosen.diff(dim=-1) > 0).all())
        assert int(chosen.min()) >= 0 and int(chosen.max()) < tokens
