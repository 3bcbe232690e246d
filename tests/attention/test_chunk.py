"""ChunkCall: a later chunk of a prompt in tiles, against each token alone over what it sees."""

import numpy as np
import pytest
import torch
from flash_standins import torch_flash
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmspec.attention import ChunkCall, LayerRule, Reach
from mmspec.attention import chunk as module
from mmspec.attention.chunk_flash import ChunkFlash
from mmspec.attention.setbacks import Setbacks
from mmspec.errors import BackendWarning
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
        patch.setattr(module.TileCall, "most_mask", small)
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


class Counted(ChunkFlash):
    """torch's kernel on the CPU, by what stands in for it."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__(self.kernel, device="cpu")
        self.launches, self.fails = 0, fails

    def kernel(self, *args: object, **kwargs: object) -> tuple[Tensor, ...]:
        self.launches += 1
        if self.fails:
            raise RuntimeError("no kernel image is available for execution on the device")
        return torch_flash(*args, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("committed", [0, 1, 300])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("asked", [150, 131])
def test_a_flash_kernel_takes_the_chunk_in_two_launches(
    committed: int, has_sinks: bool, asked: int
) -> None:
    """The last `asked` of 150 tokens, bfloat16, against each token alone in float64."""
    count, flash = 150, Counted()
    keys, values = (t.bfloat16() for t in buffers(START + committed + count))
    query = queries(asked).bfloat16()
    sinks = torch.linspace(-1, 1, HEADS) if has_sinks else None
    call = ChunkCall(START, committed, count, [FlatLayer()], [FULL], flash)
    got = call.attend(query, keys, values, rule=LayerRule(FULL, HEAD_DIM**-0.5, None, sinks))
    wide = LayerRule(FULL, HEAD_DIM**-0.5, None, None if sinks is None else sinks.double())
    before = committed + count - asked
    expected = dense(query.double(), keys.double(), values.double(), before, wide)
    assert flash.launches == (2 if before else 1)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("rule", "dtype", "count"),
    [
        (LayerRule(FULL, 0.5, softcap=5.0), torch.bfloat16, 150),
        (LayerRule(Reach(window=9), 0.5), torch.bfloat16, 150),
        (LayerRule(FULL, 0.5), torch.float32, 150),
        (LayerRule(FULL, 0.5), torch.bfloat16, 100),  # few: what trees are computed by is quicker
    ],
)
def test_what_no_flash_kernel_takes_goes_in_tiles(
    rule: LayerRule, dtype: torch.dtype, count: int
) -> None:
    flash = Counted()
    keys, values = (t.to(dtype) for t in buffers(START + 40 + count))
    call = ChunkCall(START, 40, count, [FlatLayer()], [rule.reach], flash)
    got = call.attend(queries(count).to(dtype), keys, values, rule=rule)
    query = queries(count).to(dtype).double()
    expected = dense(query, keys.double(), values.double(), 40, rule)
    assert not flash.launches
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=0.03)


def test_a_kernel_that_fails_gives_way_to_tiles_once_and_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SETBACKS", Setbacks())
    flash = Counted(fails=True)
    keys, values = (t.bfloat16() for t in buffers(START + 200))
    call = ChunkCall(START, 50, 150, [FlatLayer()], [FULL], flash)
    query, rule = queries(150).bfloat16(), LayerRule(FULL, HEAD_DIM**-0.5)
    with pytest.warns(BackendWarning, match="no kernel image.*computed by tiles"):
        first = call.attend(query, keys, values, rule=rule)
    again = call.attend(query, keys, values, rule=rule)
    assert flash.launches == 1 and torch.equal(first, again)


def test_the_dense_mask_is_made_once_for_all_layers() -> None:
    call = call_of(11, 9, FULL)
    assert call.dense_mask(FULL, torch.zeros(1)) is call.dense_mask(FULL, torch.ones(2))
