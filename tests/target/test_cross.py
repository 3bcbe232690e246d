"""Images that are read beside the tokens: a row's own, by all of its tokens, while it lives."""

from functools import cache

import pytest
import torch
from families import FAMILIES, prompt_inputs
from families.vision import IMAGE_TOKEN
from torch import Tensor
from transformers import PreTrainedModel

import mmspec
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.errors import InputError, ModelError
from mmspec.inputs import from_inputs
from mmspec.kv import KVCache, KVView, ViewSize
from mmspec.kv.policies import POLICIES
from mmspec.state import Placement, Prompt
from mmspec.target import Target
from mmspec.tree import TokenTree

CROSS = 1  # the tiny model's layer of cross-attention
#   0
#  / \
# 1   2
TREE = TokenTree((7, 12, 40), (-1, 0, 0), (1.0, 0.9, 0.5), ("", "test", "test"))


@cache
def model() -> PreTrainedModel:
    return FAMILIES["mllama"].build(torch.float64)


def inputs(layout: str, seed: int = 0, *, tokens: int = 20) -> dict[str, Tensor]:
    made = prompt_inputs(FAMILIES["mllama"], layout, num_text_tokens=tokens, seed=seed)  # type: ignore[arg-type]
    return {n: t.double() if t.is_floating_point() else t for n, t in made.items()}


def prompt(layout: str, seed: int = 0, *, tokens: int = 20) -> Prompt:
    return from_inputs(inputs(layout, seed, tokens=tokens), model().config)


def prefilled(target: Target, prompts: list[Prompt]) -> tuple[KVCache, list[Placement]]:
    cache = target.new_cache()
    rows = [cache.open(one.num_tokens + 4) for one in prompts]
    placed = [target.prefill(p, cache, r).placement for p, r in zip(prompts, rows, strict=True)]
    return cache, placed


def native(given: dict[str, Tensor], path: list[int]) -> Tensor:
    """The model's own logits (vocab,) behind the path, in one forward without a cache."""
    more = torch.tensor([path], dtype=torch.long)
    ids = torch.cat([given["input_ids"], more], dim=1)
    mask = given.get("cross_attention_mask")
    if mask is not None:
        mask = torch.cat([mask, *[mask[:, -1:]] * len(path)], dim=1)
        given = {**given, "cross_attention_mask": mask}
    with torch.no_grad():
        whole = {**given, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return model()(**whole, use_cache=False).logits[0, -1]


@pytest.mark.parametrize("attention", ["tree", "model"])
def test_each_row_of_a_batch_reads_its_own_images(attention: str) -> None:
    """Two images, none, and one, in rows of different lengths: as the model says of each alone."""
    target = Target(model(), attention=attention)  # type: ignore[arg-type]
    rows = [("two_images", 1, 12), ("text", 2, 17), ("image_first", 3, 23)]
    given = [inputs(layout, seed, tokens=tokens) for layout, seed, tokens in rows]
    cache, placed = prefilled(target, [from_inputs(one, model().config) for one in given])
    for scores, own in zip(target.score([TREE] * 3, cache, placed), given, strict=True):
        for node in range(TREE.num_nodes):
            path = [TREE.tokens[n] for n in TREE.path_to(node)]
            assert (scores.logits[node] - native(own, path)).abs().max() < 1e-9


def test_another_rows_image_says_something_else() -> None:
    """What the test above could not see if images were ignored, or rows exchanged."""
    target = Target(model(), attention="tree")
    cache, placed = prefilled(target, [prompt("image_first", 3), prompt("image_first", 4)])
    before = target.score([TREE] * 2, cache, placed)
    held = cache.cross.layers[CROSS].of_row
    held[placed[0].row], held[placed[1].row] = held[placed[1].row], held[placed[0].row]
    cache.cross.layers[CROSS]._joined = None
    for own, other in zip(before, target.score([TREE] * 2, cache, placed), strict=True):
        assert (own.logits - other.logits).abs().max() > 1e-2


def test_images_stay_while_decoding_and_go_with_the_row() -> None:
    target = Target(model(), attention="tree")
    cache, placed = prefilled(target, [prompt("image_last", 1), prompt("text", 2)])
    row, text = (placement.row for placement in placed)
    keys = cache.cross.layers[CROSS].of_row[row][0]
    kept, num_bytes = keys.clone(), cache.cross.num_bytes
    for _ in range(2):
        target.score([TREE] * 2, cache, placed)
        cache.commit({row: (0, 2), text: (0,)})
    cache.truncate(row, cache.length(row) - 1)
    assert cache.cross.layers[CROSS].of_row[row][0] is keys
    assert torch.equal(keys, kept)
    assert num_bytes > 0 and cache.num_bytes > num_bytes
    assert cache.cross.holds(row) and not cache.cross.holds(text)
    cache.close(row)
    assert cache.cross.num_bytes == 0
    assert cache.cross.seen([text]) is None
    (score,) = target.score([TREE], cache, placed[1:])
    assert score.logits.isfinite().all()
    cache.check_integrity()


def test_a_row_that_begins_again_without_its_image_forgets_it() -> None:
    target = Target(model(), attention="tree")
    cache, (placement,) = prefilled(target, [prompt("image_last", 1)])
    cache.truncate(placement.row, 0)
    text = prompt("text", 1)
    again = target.prefill(text, cache, placement.row)
    assert (again.logits - native(inputs("text", 1), [])).abs().max() < 1e-9


@pytest.mark.parametrize("border", [1, 5, 13])
def test_a_prompt_in_pieces_is_the_same(border: int) -> None:
    """Tokens before an image attend to it, too: the first piece reads all images."""
    target = Target(model(), attention="tree")
    one = prompt("two_images", 1)
    cache = target.new_cache()
    row = cache.open(one.num_tokens)
    target.prefill(one, cache, row, stop=border)
    logits = target.prefill(one, cache, row, start=border).logits
    assert (logits - native(inputs("two_images", 1), [])).abs().max() < 1e-9


def test_reuse_asks_for_the_same_images() -> None:
    """A text's keys depend on all images of its prompt, those behind it too."""
    config = Config(decode=DecodeConfig(prefill_chunk=7), cache=CacheConfig())
    engine = mmspec.load(model(), config=config, drafter="none")

    def reused(given: dict[str, Tensor]) -> int:
        result = engine.generate(given, max_new_tokens=6, ignore_eos=True, temperature=0.0)
        alone = model().generate(**given, max_new_tokens=6, do_sample=False, eos_token_id=None)
        assert result.tokens == tuple(alone[0, given["input_ids"].shape[1] :].tolist())
        return result.stats.reused_tokens

    first = inputs("image_last", 1)
    assert reused(first) == 0
    assert reused({**first, "pixel_values": -first["pixel_values"]}) == 0
    assert reused(inputs("text", 1)) == 0, "without an image the same words have other keys"
    later = {n: t[:, :-2] if t.shape[:2] == first["input_ids"].shape else t for n, t in
             inputs("image_first", 1).items()}  # fmt: skip
    assert reused(inputs("image_first", 1)) == 1, "the token that sees none in either"
    assert reused(later) == later["input_ids"].shape[1] - 1
    assert reused(first) == first["input_ids"].shape[1] - 1
    stats = engine.generate(first, max_new_tokens=2).stats
    assert (stats.encoded_media, stats.reused_media) == (0, 1), "its image was encoded before"


def test_a_view_of_a_row_reads_the_rows_images() -> None:
    """All tokens shown, a view says what its source does."""
    target = Target(model(), attention="tree")
    cache, placed = prefilled(target, [prompt("image_first", 3), prompt("text", 2)])
    view = KVView(cache, POLICIES["window"](), ViewSize(64, recent=4, room=8))
    seen = []
    for placement in placed:
        view.follow(placement.row)
        assert view.catch_up(placement.row)
        seen.append(Placement(view.row_of(placement.row), placement.position_offsets))
    pairs = zip(target.score([TREE] * 2, cache, placed), target.score([TREE] * 2, view, seen),
                strict=True)  # fmt: skip
    for own, shown in pairs:
        assert (own.logits - shown.logits).abs().max() < 1e-9
    view.unfollow(placed[0].row)
    assert view.cross.num_bytes == 0
    assert cache.cross.holds(placed[0].row)


@pytest.mark.parametrize("layout", ["text", "image_last"])
def test_taps_are_the_models_hidden_states(layout: str) -> None:
    """A text passes over the layers of cross-attention, which then hand on what they got."""
    target = Target(model(), attention="tree")
    given = inputs(layout, 1)
    taps = range(target.last_tap + 1)
    cache = target.new_cache()
    row = cache.open(32)
    prefill = target.prefill(from_inputs(given, model().config), cache, row, taps=taps)
    with torch.no_grad():
        whole = model()(**given, output_hidden_states=True).hidden_states
    own = list(whole) if layout != "text" else [whole[0], whole[1], whole[1], *whole[2:]]
    assert len(own) == len(taps)
    for tap in taps:
        assert (prefill.hidden[tap] - own[tap][0]).abs().max() < 1e-9
    (scores,) = target.score([TREE], cache, [prefill.placement], taps=taps)
    assert scores.hidden.keys() == set(taps)


def test_a_mask_that_is_missing_or_of_another_prompt_is_refused() -> None:
    """So is one that hides all images from the last token, and with it from the text."""
    target = Target(model())
    given = inputs("image_last", 1)
    mask = given.pop("cross_attention_mask")
    hidden = mask * (given["input_ids"] != IMAGE_TOKEN)[..., None, None]
    for wrong in ({}, *({"cross_attention_mask": one} for one in (mask[:, 1:], hidden))):
        with pytest.raises(InputError, match="cross_attention_mask for a prompt of 21 tokens"):
            prefilled(target, [from_inputs({**given, **wrong}, model().config)])


def test_bitwise_mode_is_refused_with_the_reason() -> None:
    config = Config(decode=DecodeConfig(exactness="bitwise"))
    with pytest.raises(ModelError, match="cross-attention layers"):
        mmspec.load(FAMILIES["mllama"].build(torch.float32), config=config)
