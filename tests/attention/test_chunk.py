"""ChunkCall: a later chunk of a prompt in tiles, against each token alone over what it sees."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmspec.attention import ChunkCall, LayerRule, Reach
from mmspec.attention import chunk as module
from mmspec.kv import FlatLayer

HEADS, KV_HEADS, HEAD_DIM, START = 4, 2, 8, 3
FULL = Reach()


def buffers(slots: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(slots)
    shape = (slots, KV_HEADS, HEAD_DIM)
    keys, values = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in "kv")
    return keys, values


def queries(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(1, HEADS, count, HEAD_DIM, generator=generator, dtype=torch.float64)


def call_of(committed: int, count: int, reach: Reach) -> ChunkCall:
    return ChunkCall(START, committed, count, [FlatLayer()], [reach])


def dense(query: Tensor, keys: Tensor, values: Tensor, committed: int, rule: LayerRule) -> Tensor:
    """The obvious reference: each token alone, over the columns that it sees."""
    out = torch.empty(1, query.shape[2], HEADS, HEAD_DIM, dtype=torch.float64)
    for index in range(query.shape[2]):
        position = committed + index
        first = int(rule.reach.first_visible(np.array([position]))[0])
        seen = slice(START + first, START + position + 1)
        for head in range(HEADS):
            group = head * KV_HEADS // HEADS
            scores = keys[seen, group] @ query[0, head, index] * rule.scaling
            if rule.softcap is not None:
                scores = torch.tanh(scores / rule.softcap) * rule.softcap
            if rule.sinks is not None:
                scores = torch.cat([scores, rule.sinks[head : head + 1]])
            weights = scores.softmax(0)[: seen.stop - seen.start]
            out[0, index, head] = weights @ values[seen, group]
    return out


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 30),
    st.sampled_from([FULL, Reach(window=5), Reach(window=100), Reach(chunk=8)]),
    st.sampled_from([None, 5.0]),
    st.booleans(),
    st.sampled_from([1, 7, 16]),
    st.sampled_from([0, 2**18]),
)
def test_tiles_give_what_each_token_alone_does(
    committed: int,
    count: int,
    reach: Reach,
    softcap: float | None,
    has_sinks: bool,
    tile: int,
    small: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TILE", tile)
        patch.setattr(module, "_SMALL", small)
        keys, values = buffers(START + committed + count)
        sinks = torch.linspace(-1, 1, HEADS, dtype=torch.float64) if has_sinks else None
        rule = LayerRule(reach, HEAD_DIM**-0.5, softcap, sinks)
        query = queries(count)
        got = call_of(committed, count, reach).attend(query, keys, values, rule=rule)
        torch.testing.assert_close(got, dense(query, keys, values, committed, rule))


@pytest.mark.parametrize("reach", [FULL, Reach(window=5), Reach(chunk=8)])
def test_the_dense_mask_says_the_same(reach: Reach) -> None:
    committed, count = 11, 9
    keys, values = buffers(START + committed + count)
    query, rule = queries(count), LayerRule(reach, HEAD_DIM**-0.5)
    call = call_of(committed, count, reach)
    mask = call.dense_mask(reach, query)
    view = [
        t[START:].transpose(0, 1).repeat_interleave(HEADS // KV_HEADS, 0) for t in (keys, values)
    ]
    out = torch.nn.functional.scaled_dot_product_attention(
        query, view[0][None], view[1][None], attn_mask=mask, scale=rule.scaling
    )
    torch.testing.assert_close(
        call.attend(query, keys, values, rule=rule), out.transpose(1, 2), msg="tiles != mask"
    )


@pytest.mark.parametrize("reach", [FULL, Reach(window=300)])
def test_no_mask_grows_with_the_text_and_tiles_share_them(reach: Reach) -> None:
    committed, count = 50_000, 2048
    call = call_of(committed, count, reach)
    like = torch.zeros(1)
    masks = [part.mask for tile in call.tiles() for part in tile.parts(0, reach, 2, like)]
    held = {mask.data_ptr(): mask.nbytes for mask in masks if mask is not None}
    assert len(held) == 1, "every tile stands behind as much as it can see"
    assert sum(held.values()) <= 2 * module._TILE * (module._TILE + 300) * 4
    first = [part.first for part in call.tiles()[0].parts(0, reach, 2, like)]
    assert min(first) == START + (0 if reach.is_full else committed - 299)
