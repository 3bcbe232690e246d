"""A tree scored level by level says the same as the whole tree scored at once."""

from functools import cache

import pytest
import torch
from families import FAMILIES, prompt_inputs

from mmspec.inputs import from_inputs
from mmspec.kv import KVCache
from mmspec.state import Placement
from mmspec.target import Target
from mmspec.target.probe import probe
from mmspec.tree import TokenTree

TOLERANCE = 1e-9  # float64, against logits of a spread of about 1

#        0:40                    0:50            0:60
#       /    \                    |               |
#    1:41    2:42               1:51            1:61
#    /  \      |                  |
#  3:43 4:44  5:45              2:52
#   |                             |
#  6:46                         3:53
TREES = (
    TokenTree((40, 41, 42, 43, 44, 45, 46), (-1, 0, 0, 1, 1, 2, 3), (1.0,) * 7, ("", *"aaaaaa")),
    TokenTree.chain(50, (51, 52, 53), (1.0,) * 3, "a"),
    TokenTree.chain(60, (61,), (1.0,), "a"),
)
# Nodes of each tree that are written after each call; a row drops out when it has no more.
LEVELS = ((1, 1, 2), (3, 2, 2), (6, 3, 2), (7, 4, 2))
LENGTHS = (24, 5, 11)


@cache
def _target(name: str) -> Target:
    return probe(FAMILIES[name].build(torch.float64))[0]


def _prefilled(name: str) -> tuple[Target, KVCache, list[Placement]]:
    """Three rows of different length; of a vision family the first has an image."""
    target, family = _target(name), FAMILIES[name]
    kv, placements = target.new_cache(), []
    for seed, length in enumerate(LENGTHS):
        layout = "image_middle" if family.kind == "vision" and seed == 0 else "text"
        inputs = prompt_inputs(family, layout, num_text_tokens=length, seed=seed)  # type: ignore[arg-type]
        prompt = from_inputs(inputs, target.model.config)
        placements.append(target.prefill(prompt, kv, kv.open(1)).placement)
    return target, kv, placements


@pytest.mark.parametrize("name", FAMILIES)
def test_level_by_level_equals_the_whole_tree_at_once(name: str) -> None:
    target, kv, placements = _prefilled(name)
    whole = [score.logits for score in target.score(TREES, kv, placements)]
    kv.commit({})  # all of it stays written: the levels write it again from the first node on
    before = [0, 0, 0]
    for level in LEVELS:
        rows = [row for row in range(3) if level[row] > before[row]]
        scores = target.score(
            [TREES[row].keep(range(level[row])) for row in rows],
            kv,
            [placements[row] for row in rows],
            written=[before[row] for row in rows],
        )
        for row, score in zip(rows, scores, strict=True):
            expected = whole[row][before[row] : level[row]]
            error = float((score.logits - expected).abs().max())
            # MPT counts its biases from the last column on, and rounds what comes out to float32.
            assert error < (1e-5 if name == "mpt" else TOLERANCE), (
                f"row {row}, nodes {before[row]}..: off by {error:.2g}"
            )
        before = list(level)
    kv.check_integrity()


def test_what_levels_wrote_is_committed_like_one_tree() -> None:
    texts = []
    for by_level in (False, True):
        target, kv, placements = _prefilled("llama")
        if by_level:
            for old, new in ((0, 1), (1, 3), (3, 6), (6, 7)):
                tree = TREES[0].keep(range(new))
                target.score([tree], kv, placements[:1], written=[old])
        else:
            target.score(TREES[:1], kv, placements[:1])
        kv.commit({placements[0].row: (0, 1, 3, 6)})
        assert kv.length(placements[0].row) == LENGTHS[0] + 4
        texts.append(target.score([TokenTree.root(70)], kv, placements[:1])[0].logits)
    torch.testing.assert_close(*texts, rtol=0, atol=TOLERANCE)


def test_nodes_that_nobody_wrote_are_not_built_on() -> None:
    target, kv, placements = _prefilled("llama")
    with pytest.raises(AssertionError, match="were not written"):
        target.score(TREES[:1], kv, placements[:1], written=[1])
    target.score([TREES[0].keep(range(3))], kv, placements[:1])
    kv.commit({placements[0].row: (0,)})
    with pytest.raises(AssertionError, match="were not written"):
        target.score(TREES[:1], kv, placements[:1], written=[3])


def test_a_truncated_row_goes_on_from_there() -> None:
    target, kv, placements = _prefilled("llama")
    place, tree = placements[0], TREES[1]
    kv.open(1)  # stands behind the rows, so that growth has to move
    expected = target.score([tree], kv, [place])[0].logits
    kv.commit({place.row: (0, 1, 2, 3)})
    kv.truncate(place.row, LENGTHS[0])
    again = target.score([tree], kv, [place])[0].logits
    torch.testing.assert_close(again, expected, rtol=0, atol=TOLERANCE)
    with pytest.raises(AssertionError):
        kv.truncate(place.row, LENGTHS[0] + 1)


def test_kept_tokens_of_a_prompt_keep_their_positions() -> None:
    """Dropping keys of the first layer's inputs alone is what one layer can tell exactly."""
    target, name = _target("llama"), "llama"
    inputs = prompt_inputs(FAMILIES[name], "text", num_text_tokens=12)
    prompt = from_inputs(inputs, target.model.config)
    kv = target.new_cache()
    whole = target.prefill(prompt, kv, kv.open(12)).placement
    kept = [0, 1, 2, 5, 6, 9, 10, 11]
    thin = target.prefill(prompt, kv, kv.open(12), keep=kept).placement
    assert kv.length(thin.row) == len(kept)
    assert thin.position_offsets[0] == whole.position_offsets[0] + 4
    for layer in kv.flat_layers:
        full = layer.keys[kv._regions.rows[whole.row].start :][:12]
        assert torch.equal(layer.keys[kv._regions.rows[thin.row].start :][:8], full[kept])
