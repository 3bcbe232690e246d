"""Alignment by text: what the draft model reads is the text, what it proposes continues it."""

import random
from collections.abc import Callable, Sequence
from itertools import product, takewhile
from typing import Any

import pytest
import torch
from draft_models import byte_level, letters, metaspace
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmspec.calibration import Calibration
from mmspec.drafters.draft_model.alignment import TextAlignment, TextWording, aligned
from mmspec.drafters.draft_model.codec import HALF, SEAM, Codec
from mmspec.drafters.draft_model.trie import PathTrie
from mmspec.drafters.growing.growth import Candidates, Child, Growth
from mmspec.errors import ConfigError
from mmspec.reads import read
from mmspec.state import Placement, Prompt

TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte_level": byte_level,
    "few_merges": lambda: byte_level(5),
    "metaspace": metaspace,
}
PAIRS = pytest.mark.parametrize(
    ("target", "draft"), [pair for pair in product(TOKENIZERS, repeat=2) if pair[0] != pair[1]]
)
TEXT = "the quick brown fox, naïve café: 猫 and 😀!\n\n  jumps over  the other one; isn't it 42?"


class Script:
    """Grows a tree whose paths are the given ones."""

    def __init__(self, *paths: list[int]) -> None:
        self.paths = paths

    is_set = False

    def find(self, logits: torch.Tensor, depths: Sequence[int], draws: Sequence[int]) -> Candidates:
        depth = depths[0]
        frontier = dict.fromkeys(tuple(path[: depth - 1]) for path in self.paths)
        born = [
            list(dict.fromkeys(p[depth - 1] for p in self.paths if tuple(p[: depth - 1]) == above))
            for above in frontier
        ]
        most = max(map(len, born))
        tokens = [[*own, *[-1] * (most - len(own))] for own in born]
        return Candidates(torch.tensor(tokens), 0.9 * (torch.tensor(tokens) >= 0))

    def children(self, tokens: Sequence[int], beliefs: Sequence[float]) -> list[Child]:
        return [
            Child(token, belief) for token, belief in zip(tokens, beliefs, strict=True) if belief
        ]

    def goes_on(self, growth: Growth, level: list[int]) -> list[int]:
        return list(level)


def alignment(target: str, draft: str) -> TextAlignment:
    return aligned(TOKENIZERS[target](), TOKENIZERS[draft]())


def read_in_steps(wording: TextWording, tokens: list[int], seed: int = 0) -> None:
    """Hands over a few tokens more each time, and checks what is said to stay."""
    draw, end = random.Random(seed), 0
    while end < len(tokens):
        end = min(end + draw.randint(1, 4), len(tokens))
        before = list(wording.ids)
        unchanged = wording.read(tokens[:end])
        assert wording.ids[:unchanged] == before[:unchanged]
        assert len(before) - unchanged <= SEAM, "more than the seam was encoded again"


def grown(wording: TextWording, *paths: list[int]) -> Growth:
    """A growth that went down `paths` (of one length)."""
    growth = Growth(Placement(0, (0,)), [wording.ids[-1]], Script(*paths), "draft_model")
    for depth in range(len(paths[0])):
        growth.find(torch.zeros(len({tuple(path[:depth]) for path in paths}), 1))
        growth.settle(iter(read(*growth.unsettled)))
    return growth


# LAW


@pytest.mark.parametrize("name", TOKENIZERS)
def test_nothing_is_added_to_a_text_and_nothing_left_out(name: str) -> None:
    codec = Codec(TOKENIZERS[name]())
    ids = codec.encode(TEXT)
    assert not codec.specials & {*ids}
    assert codec.decode(ids) == TEXT
    assert codec.decode([*ids, codec.tokenizer.eos_token_id]) == f"{TEXT}</s>"


class WithoutBackend:
    """As tokenizers that are written in Python are."""

    backend_tokenizer = None

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._tokenizer(*args, **options)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_in_python_says_the_same(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    fast, slow = Codec(tokenizer), Codec(WithoutBackend(tokenizer))  # type: ignore[arg-type]
    for text in (TEXT, "a , b . c ' s", ""):
        ids = [1, *fast.encode(text), tokenizer.eos_token_id]
        assert slow.encode(text) == ids[1:-1] and slow.decode(ids) == fast.decode(ids)


def test_a_texts_end_is_the_longest_that_begins_with_a_whole_character() -> None:
    codec = Codec(byte_level(0))  # a byte a token
    for text, end in (("😀😀", "😀😀"), ("😀😀a", "😀a"), ("a" * 9, "a" * 8), ("é" * 5, "é" * 4)):
        ids = codec.encode(text)
        assert len(ids) == len(text.encode()) and codec.tail(ids) == end
        assert codec.seam(ids) == (codec.encode(end), end)
    half = codec.encode("😀")[:3]
    assert codec.tail(half) == "" and codec.seam(half) == ([], "")
    assert codec.tail([]) == "" and codec.seam([]) == ([], "")


@PAIRS
@pytest.mark.parametrize("seed", range(3))
def test_the_draft_model_reads_the_text_and_encodes_again_only_at_the_seam(
    target: str, draft: str, seed: int
) -> None:
    both = alignment(target, draft)
    tokens = both.target.encode(TEXT)
    wording = both.wording(Prompt(torch.tensor([1])))
    read_in_steps(wording, [1, *tokens], seed)
    assert wording.can_continue
    read = both.draft.decode_behind(both.draft.encode("\n"), wording.ids)
    assert read.strip() == TEXT


@PAIRS
def test_an_answer_goes_on_where_the_prompt_ended(target: str, draft: str) -> None:
    """Some tokenizers drop a first space: that of an answer, or of what stands behind an image, is
    none."""
    both = alignment(target, draft)
    tokens = both.target.encode(TEXT)
    for cut in range(1, len(tokens)):
        begun = both.target.decode(tokens[:cut])
        if begun.endswith(HALF):
            continue
        wording = both.wording(Prompt(torch.tensor(tokens[:cut])))
        for end in range(cut + 1, len(tokens) + 1):
            wording.read(tokens[:end])
        whole = both.read_prompt([tokens[:cut]]) + wording.ids
        assert both.draft.decode(whole).removeprefix("<s>").strip() == TEXT, f"behind {begun!r}"
        pieces = both.read_prompt([tokens[:cut], " [a cat]", tokens[cut:]])
        told = f"{begun} [a cat]{TEXT.removeprefix(begun)}"
        assert both.draft.decode(pieces).removeprefix("<s>").strip() == told


@PAIRS
def test_a_drafted_text_is_proposed_as_the_target_would_write_it(target: str, draft: str) -> None:
    """Wherever the text is cut between two of the target's tokens, a drafted rest continues it."""
    both = alignment(target, draft)
    tokens, num_tokens = both.target.encode(TEXT), 0
    for cut in range(4, len(tokens) - 6):
        wording = both.wording(Prompt(torch.tensor([1])))
        wording.read([1, *tokens[:cut]])
        if not wording.can_continue:
            continue
        done = both.target.decode_behind(both.target.encode("\n"), tokens[:cut])
        rest = both.draft.encode_behind(done[-8:], TEXT.removeprefix(done.lstrip()))[:8]
        proposal = wording.propose(grown(wording, rest), [1, *tokens[:cut]], Calibration())
        proposal.tree.check_integrity(len(both.target.tokenizer))
        proposed = list(proposal.tree.tokens[1:])
        # The last word's could be changed by more text; all others are the target's own.
        pairs = zip(proposed, tokens[cut:], strict=False)
        own = [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
        left = both.target.decode_behind(tokens[:cut], proposed).removeprefix(
            both.target.decode_behind(tokens[:cut], own).rstrip("\ufffd")
        )
        assert len(left.split()) <= 1, f"after {done!r}: {left!r} is not what the target writes"
        num_tokens += len(own)
    assert num_tokens > len(tokens)


def test_half_a_character_is_neither_read_nor_proposed() -> None:
    both = alignment("byte_level", "metaspace")
    tokens = both.target.encode("the 猫 猫")
    wording = both.wording(Prompt(torch.tensor([1])))
    whole = []
    for end in range(1, len(tokens) + 1):
        wording.read([1, *tokens[:end]])
        whole.append(wording.can_continue)
        assert "\ufffd" not in both.draft.decode(wording.ids)
    assert not all(whole) and whole[-1]
    other = alignment("metaspace", "byte_level")
    wording = other.wording(Prompt(torch.tensor([1])))
    start = other.target.encode("the fox")
    wording.read([1, *start])
    half = other.draft.encode(" x猫")[:3]
    assert other.draft.decode(half).endswith("\ufffd")
    tree = wording.propose(grown(wording, half), [1, *start], Calibration()).tree
    assert other.target.decode_behind(start, tree.tokens[1:]) == " x"


def test_several_paths_are_one_tree_of_the_targets_tokens() -> None:
    both = alignment("byte_level", "few_merges")
    start = both.target.encode("hello")
    wording = both.wording(Prompt(torch.tensor([1])))
    wording.read([1, *start])
    paths = [both.draft.encode(text)[:4] for text in (" the other", " then two", " xyz")]
    tree = wording.propose(grown(wording, *paths), [1, *start], Calibration()).tree
    tree.check_integrity(len(both.target.tokenizer))
    assert tree.tokens[0] == start[-1]
    below = {
        both.target.decode_behind(start, [tree.tokens[n] for n in tree.path_to(leaf)[1:]])
        for leaf in set(range(1, tree.num_nodes)) - set(tree.parents)
    }
    assert below == {both.draft.decode(path) for path in paths}
    assert set(tree.drafters[1:]) == {"draft_model"}


def test_the_end_of_text_is_told_in_the_targets_id_and_other_specials_end_a_path() -> None:
    both = alignment("metaspace", "byte_level")
    start = both.target.encode("the fox")
    eos, pad = both.draft.tokenizer.eos_token_id, both.draft.tokenizer.pad_token_id
    told = both.target.tokenizer.eos_token_id
    for special, both.eos, expected in ((eos, told, [told]), (eos, None, []), (pad, told, [])):
        wording = both.wording(Prompt(torch.tensor([1])))
        wording.read([1, *start])
        path = [*both.draft.encode(" too"), special, *both.draft.encode("x")]
        tree = wording.propose(grown(wording, path), [1, *start], Calibration()).tree
        assert list(tree.tokens[1:]) == [*both.target.encode_behind("fox", " too"), *expected]


def test_what_the_next_word_might_change_is_learnt_apart() -> None:
    trie, calibration = PathTrie(1, "draft_model"), Calibration()
    trie.add((2, 3, 4), (0.8, 0.4, 0.2), num_certain=1)
    assert trie.proposal(calibration).buckets == (None, (False, 6), (True, 3), (True, 3))
    trie.add((2, 3), (0.6, 0.6), num_certain=2)  # of another path it is certain
    proposal = trie.proposal(calibration)
    assert proposal.buckets == (None, (False, 6), (False, 5), (True, 2))
    assert proposal.tree.cumulative_confidence == pytest.approx((1.0, 0.8, 0.6, 0.2))
    trie.add((2, 3), (0.6, 0.6), num_certain=0)
    assert trie.proposal(calibration) == proposal, "what is certain of one path stays so"


def test_of_a_drafted_text_its_last_word_may_change() -> None:
    both = alignment("few_merges", "byte_level")
    tokens = [1, *both.target.encode("the fox")]
    wording = both.wording(Prompt(torch.tensor([1])))
    wording.read(tokens)
    for drafted, certain, last in ((" jumps over", " jumps ", "over"), ("es", "", "es")):
        path = both.draft.encode_behind("the fox", drafted)
        proposal = wording.propose(grown(wording, path), tokens, Calibration())
        words = {True: "", False: ""}
        for token, (is_open, _) in zip(proposal.tree.tokens[1:], proposal.buckets[1:], strict=True):  # type: ignore[misc]
            words[is_open] += both.target.decode([token])
        assert words == {False: certain, True: last}


def test_special_tokens_that_the_draft_model_lacks_are_no_text() -> None:
    target = byte_level(7)
    target.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    both = aligned(target, metaspace())
    turn = target.convert_tokens_to_ids("<|turn|>")
    wording = both.wording(Prompt(torch.tensor([1])))
    wording.read([1, *both.target.encode("the fox"), turn, *both.target.encode(" too")])
    assert both.draft.decode(wording.ids) == "the fox too"
    prompt = both.read_prompt([[turn, *both.target.encode("the fox")], " [a cat] ", [turn]])
    assert both.draft.decode(prompt) == "<s> the fox [a cat] "


def test_an_answer_behind_tokens_that_are_no_text_begins_no_text() -> None:
    """As behind an image, whose tokens are many."""
    target = metaspace()
    target.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    both = aligned(target, byte_level())
    image = target.convert_tokens_to_ids("<|image|>")
    begun = [*both.target.encode("the quick"), *[image] * (SEAM + 1)]
    wording = both.wording(Prompt(torch.tensor(begun)))
    wording.read([*begun, *both.target.encode("the quick brown")[len(begun) - SEAM - 1 :]])
    assert both.draft.decode(wording.ids) == " brown"


@pytest.mark.parametrize("draft", TOKENIZERS)
def test_a_prompt_begins_once_as_the_draft_model_begins_a_text(draft: str) -> None:
    both = aligned(byte_level(9), TOKENIZERS[draft]())
    fox, bos = both.target.encode("the fox"), both.draft.tokenizer.bos_token_id
    begun = [both.target.tokenizer.bos_token_id, *fox]
    assert both.read_prompt([begun]).count(bos) == 1 == both.read_prompt([begun]).index(bos) + 1
    own = [bos] if draft == "metaspace" else []  # others begin with the text
    assert both.read_prompt([fox]) == [*own, *both.draft.encode("the fox")]


def test_tokenizers_that_do_not_keep_a_text_are_refused() -> None:
    spoilt = Tokenizer(models.WordLevel({"hello": 3, "<unk>": 4}, unk_token="<unk>"))
    spoilt.normalizer = normalizers.Lowercase()
    spoilt.pre_tokenizer = pre_tokenizers.Whitespace()
    other = PreTrainedTokenizerFast(tokenizer_object=spoilt, unk_token="<unk>")
    with pytest.raises(ConfigError, match=r"the draft model's tokenizer reads .* back as"):
        aligned(byte_level(), other)
    with pytest.raises(ConfigError, match=r"the target's tokenizer"):
        aligned(other, byte_level())


def test_letters_are_aligned_too() -> None:
    both = aligned(letters(), byte_level())
    tokens = both.target.encode("hello there")
    wording = both.wording(Prompt(torch.tensor([1])))
    read_in_steps(wording, [1, *tokens])
    assert both.draft.decode(wording.ids) == "hello there"
