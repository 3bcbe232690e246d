"""Tokens to text, piece by piece: the pieces are the whole, and nothing is shown too early."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inputs.text_families import build_tokenizer
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from mmspec.stream import Detokenizer, Piece, TextStream, build_detokenizer


def fast(tokenizer: PreTrainedTokenizerBase, skip: bool) -> Detokenizer:
    assert tokenizer.backend_tokenizer is not None
    return build_detokenizer(tokenizer, skip_special_tokens=skip)


def slow(tokenizer: Any, skip: bool) -> Detokenizer:
    """As of a tokenizer without a fast backend."""
    without: Any = SimpleNamespace(
        decode=tokenizer.decode, all_special_ids=tokenizer.all_special_ids
    )
    return build_detokenizer(without, skip_special_tokens=skip)


Make = Callable[[PreTrainedTokenizerBase, bool], Detokenizer]
BOTH = pytest.mark.parametrize("make", [fast, slow])
CHARACTERS = "aé€你🎈 \n"  # 1, 2, 3 and 4 bytes
BYTE_LEVEL, BYTE_FALLBACK = "qwen", "gemma"  # tokenizer families


def detokenized(detokenizer: Detokenizer, tokens: Sequence[int]) -> str:
    return "".join(detokenizer.push(token) for token in tokens) + detokenizer.flush()


def bytes_as_tokens(tokenizer: PreTrainedTokenizerBase, data: bytes) -> list[int]:
    """One byte-fallback token a byte."""
    tokens = tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in data])
    assert None not in tokens
    return tokens


class Spelled:
    """A detokenizer whose token i is the i-th text; what is `late` comes with the flush."""

    def __init__(self, texts: Sequence[str], late: str = "") -> None:
        self._texts = texts
        self._late = late

    def push(self, token: int) -> str:
        return self._texts[token]

    def flush(self) -> str:
        return self._late


def streamed(stream: TextStream, num_tokens: int) -> list[tuple[str, int]]:
    """Pushes the tokens 0, 1, ... until the text stops; all that was released."""
    released: list[tuple[str, int]] = []
    for token in range(num_tokens):
        if not stream.is_stopped:
            stream.push(token)
            released += stream.take()
    stream.finish()
    return released + stream.take()


def text_of(released: Sequence[tuple[str, int]]) -> str:
    return "".join(text for text, _ in released)


# LAW: detokenizers


@BOTH
def test_a_character_split_over_tokens_comes_when_it_is_whole(make: Make) -> None:
    tokenizer = build_tokenizer(BYTE_FALLBACK)
    detokenizer = make(tokenizer, True)
    tokens = bytes_as_tokens(tokenizer, "é🎈".encode())
    assert [detokenizer.push(token) for token in tokens] == ["", "é", "", "", "", "🎈"]
    assert detokenizer.flush() == ""


@BOTH
def test_a_character_cut_off_at_the_end_is_flushed_as_replacement(make: Make) -> None:
    tokenizer = build_tokenizer(BYTE_FALLBACK)
    word = tokenizer.convert_tokens_to_ids(["a"])
    tokens = word + bytes_as_tokens(tokenizer, "🎈".encode()[:3])
    detokenizer = make(tokenizer, True)
    assert [detokenizer.push(token) for token in tokens] == ["a", "", "", ""]
    assert detokenizer.flush() == "\ufffd" * 3


@BOTH
@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_have_text_only_if_asked_for(make: Make, skip: bool) -> None:
    tokenizer = build_tokenizer(BYTE_LEVEL)
    word = tokenizer("total", add_special_tokens=False).input_ids
    tokens = [*word, tokenizer.convert_tokens_to_ids("<|im_end|>"), *word]
    shown = detokenized(make(tokenizer, skip), tokens)
    assert shown == ("totaltotal" if skip else "total<|im_end|>total")


@pytest.mark.parametrize("after", [[], ["a"]])
def test_bytes_that_are_no_character_cost_no_text(after: list[str]) -> None:
    tokenizer = build_tokenizer(BYTE_FALLBACK)
    tokens = bytes_as_tokens(tokenizer, "你".encode() + b"\xff\xff")
    tokens += tokenizer.convert_tokens_to_ids(["a", *after])
    text = detokenized(fast(tokenizer, True), tokens)
    assert text.startswith("你"), "what was shown stays"
    assert text.endswith("".join(["a", *after]))


def test_a_token_costs_the_same_however_long_the_text_is() -> None:
    lengths = list[int]()

    def decode(tokens: list[int]) -> str:
        lengths.append(len(tokens))
        return "".join(chr(97 + token % 26) for token in tokens)

    assert len(detokenized(Detokenizer(decode), range(500))) == 500
    assert max(lengths) == 2, "the last token whose text came out, and the one since"


def counted(detokenizer: Detokenizer) -> list[int]:
    """The lengths of what it is going to decode."""
    lengths, decode = list[int](), detokenizer._decode

    def counting(tokens: list[int]) -> str:
        lengths.append(len(tokens))
        return decode(tokens)

    detokenizer._decode = counting
    return lengths


@BOTH
@pytest.mark.parametrize("name", [BYTE_LEVEL, BYTE_FALLBACK, "unigram", "wordpiece", "llama3"])
def test_so_it_does_behind_many_tokens_without_text(make: Make, name: str) -> None:
    """Special tokens that are left out, and numbers of a padded vocabulary that are no token."""
    tokenizer = build_tokenizer(name)
    words = tokenizer("total", add_special_tokens=False).input_ids
    silent = list(tokenizer.all_special_ids)
    if make is fast:
        silent.append(len(tokenizer) + 7)
    detokenizer = make(tokenizer, True)
    lengths = counted(detokenizer)
    tokens = [*silent * 200, *words, *silent * 200, *words, *silent * 200]
    expected = tokenizer.decode([*words, *words])
    assert detokenized(detokenizer, tokens) == expected
    assert max(lengths) < 40 + 2 * len(words)


def byte_tokens(name: str, tokenizer: PreTrainedTokenizerBase, data: bytes) -> list[int]:
    """One token a byte, whatever the tokenizer's way of writing bytes."""
    if name == BYTE_FALLBACK:
        return bytes_as_tokens(tokenizer, data)
    alphabet = bytes_to_unicode()
    return tokenizer.convert_tokens_to_ids([alphabet[byte] for byte in data])


@pytest.mark.parametrize("name", [BYTE_LEVEL, BYTE_FALLBACK])
@pytest.mark.parametrize("byte", [0xFF, 0xBD, 0xE4])
def test_so_it_does_in_a_long_run_of_bytes_that_are_no_character(name: str, byte: int) -> None:
    tokenizer = build_tokenizer(name)
    detokenizer = fast(tokenizer, True)
    lengths = counted(detokenizer)
    tokens = byte_tokens(name, tokenizer, bytes([byte]) * 500)
    tokens += tokenizer("total", add_special_tokens=False).input_ids
    assert detokenized(detokenizer, tokens) == tokenizer.decode(tokens)
    assert max(lengths) < 40


@pytest.mark.parametrize("name", [BYTE_LEVEL, BYTE_FALLBACK])
@given(
    bad=st.binary(min_size=1, max_size=60),
    text=st.text(CHARACTERS, max_size=20),
    worse=st.binary(max_size=40),
)
def test_a_run_of_bad_bytes_reads_as_it_does_at_once(
    name: str, bad: bytes, text: str, worse: bytes
) -> None:
    tokenizer = build_tokenizer(name)
    # Begun by no character, so that nothing is shown that a later byte could take back.
    tokens = byte_tokens(name, tokenizer, b"\xff" + bad + text.encode() + worse)
    assert detokenized(fast(tokenizer, True), tokens) == tokenizer.decode(tokens)


def test_no_tokenizer_no_text_and_nothing_is_held_for_it() -> None:
    detokenizer = build_detokenizer(None, skip_special_tokens=True)
    lengths = counted(detokenizer)
    assert detokenized(detokenizer, range(500)) == ""
    assert max(lengths) < 20


def test_the_fast_detokenizer_is_taken_where_it_can_be() -> None:
    backend = SimpleNamespace(decode=lambda ids, skip_special_tokens: "quick")
    both: Any = SimpleNamespace(decode=None, backend_tokenizer=backend)
    assert detokenized(build_detokenizer(both, skip_special_tokens=True), [1]) == "quick"


def test_a_piece_prints_as_its_text() -> None:
    assert str(Piece("mat", "prompt_lookup")) == "mat"


# LAW: text and stop strings


def test_the_end_of_a_text_that_a_stop_string_could_begin_with_is_held_back() -> None:
    stream = TextStream(Spelled(["a\n", "b\n", "\nc"]), stop=["\n\n"])
    stream.push(0)
    assert stream.take() == [("a", 0)]
    stream.push(1)
    assert stream.take() == [("\n", 0), ("b", 1)], "the held end goes on otherwise: it is text"
    stream.push(2)
    assert stream.is_stopped
    assert stream.take() == []


def test_what_is_held_at_the_end_is_text() -> None:
    stream = TextStream(Spelled(["ab", "<"], late="/"), stop=["</s>"])
    released = streamed(stream, 2)
    assert text_of(released) == "ab</"
    assert not stream.is_stopped


def test_a_stop_string_that_ends_in_the_flush_still_stops() -> None:
    stream = TextStream(Spelled(["ab", "<"], late="/s>c"), stop=["</s>"])
    assert text_of(streamed(stream, 2)) == "ab"
    assert stream.is_stopped


def test_a_stopped_text_takes_no_more_tokens() -> None:
    stream = TextStream(Spelled(["x", "y"]), stop=["x"])
    stream.push(0)
    with pytest.raises(AssertionError, match="takes no more tokens"):
        stream.push(1)


spellings = st.lists(st.text("ab<", max_size=3), max_size=10)
stops = st.lists(st.text("ab<", min_size=1, max_size=4), max_size=3)


@given(spellings)
def test_each_text_is_said_to_come_from_the_token_that_completed_it(texts: list[str]) -> None:
    released = streamed(TextStream(Spelled(texts), stop=["<<"]), len(texts))
    said = {token: "" for token in range(len(texts))}
    for text, token in released:
        said[token] += text
    shown = text_of(released)
    end = 0
    for token, text in enumerate(texts):
        assert said[token] == shown[end : end + len(text)], f"token {token}"
        end += len(text)
    assert [token for _, token in released] == sorted(token for _, token in released)


@given(spellings, stops)
def test_nothing_shown_is_ever_taken_back(texts: list[str], stop: list[str]) -> None:
    """What is released after each token is the beginning of every text that could follow."""
    stream, shown = TextStream(Spelled(texts), stop=stop), ""
    for token in range(len(texts)):
        if not stream.is_stopped:
            stream.push(token)
            shown += text_of(stream.take())
            assert not any(one in shown for one in stop), f"{shown!r} holds a stop string"
            written = "".join(texts[: token + 1])
            assert written.startswith(shown)
            longest = max(map(len, stop), default=1) - 1
            assert stream.is_stopped or len(written) - len(shown) <= longest, "held for too long"


# ORACLE


@given(spellings, stops)
def test_the_text_ends_before_the_first_stop_string_there_is(
    texts: list[str], stop: list[str]
) -> None:
    expected = "".join(texts)
    for end in range(1, len(texts) + 1):
        written = "".join(texts[:end])
        found = [written.find(one) for one in stop if one in written]
        if found:
            expected = written[: min(found)]
            break
    stream = TextStream(Spelled(texts), stop=stop)
    assert text_of(streamed(stream, len(texts))) == expected
    assert stream.is_stopped is any(one in "".join(texts) for one in stop)


@BOTH
@pytest.mark.parametrize("skip", [True, False])
@given(data=st.data())
def test_any_byte_level_tokens_decode_as_all_at_once(
    make: Make, skip: bool, data: st.DataObject
) -> None:
    """Random tokens: half characters, invalid bytes and special tokens anywhere."""
    tokenizer = build_tokenizer(BYTE_LEVEL)
    tokens = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=16))
    expected = tokenizer.decode(tokens, skip_special_tokens=skip)
    assert detokenized(make(tokenizer, skip), tokens) == expected


@BOTH
@given(data=st.data())
def test_byte_level_characters_split_anywhere_decode_as_all_at_once(
    make: Make, data: st.DataObject
) -> None:
    tokenizer = build_tokenizer(BYTE_LEVEL)
    text = data.draw(st.text(CHARACTERS, max_size=12))
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    assert detokenized(make(tokenizer, True), tokens) == text
    cut = tokens[: data.draw(st.integers(0, len(tokens)))]
    assert detokenized(make(tokenizer, True), cut) == tokenizer.decode(cut)


@BOTH
@given(data=st.data())
def test_byte_fallback_tokens_decode_as_all_at_once(make: Make, data: st.DataObject) -> None:
    """Words and characters spelled in bytes; the last character may be cut off.

    Bytes that make no character change the text of those before them, which was shown already:
    there, streaming cannot agree with decoding all at once.
    """
    tokenizer = build_tokenizer(BYTE_FALLBACK)
    words = st.integers(300, len(tokenizer) - 1).map(lambda token: [token])
    characters = st.sampled_from(CHARACTERS).map(
        lambda one: bytes_as_tokens(tokenizer, one.encode())
    )
    parts = data.draw(st.lists(words | characters, max_size=12))
    tokens = [token for part in parts for token in part]
    if data.draw(st.booleans()):
        tokens += [len(tokenizer) - 1, *bytes_as_tokens(tokenizer, "🎈".encode()[:-1])]
    assert detokenized(make(tokenizer, True), tokens) == tokenizer.decode(tokens)


@given(data=st.data())
def test_any_byte_fallback_tokens_have_the_same_text_fast_and_slow(data: st.DataObject) -> None:
    tokenizer = build_tokenizer(BYTE_FALLBACK)
    tokens = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=16))
    assert detokenized(fast(tokenizer, True), tokens) == detokenized(slow(tokenizer, True), tokens)


@BOTH
@pytest.mark.parametrize("name", [BYTE_LEVEL, BYTE_FALLBACK, "unigram", "wordpiece", "llama3"])
@given(data=st.data())
def test_tokens_without_text_change_none_of_it(make: Make, name: str, data: st.DataObject) -> None:
    """Also within a character, and at the beginning."""
    tokenizer = build_tokenizer(name)
    tokens = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=6))
    silent = data.draw(st.sampled_from(tokenizer.all_special_ids))
    spread = [one for token in tokens for one in (*[silent] * 20, token)]
    without = [token for token in tokens if token not in tokenizer.all_special_ids]
    expected = detokenized(make(tokenizer, True), without)
    assert detokenized(make(tokenizer, True), spread) == expected


@BOTH
@pytest.mark.parametrize("name", ["unigram", "wordpiece", "llama3"])
@given(data=st.data())
def test_other_tokenizers_decode_as_all_at_once(make: Make, name: str, data: st.DataObject) -> None:
    tokenizer = build_tokenizer(name)
    tokens = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=12))
    expected = tokenizer.decode(tokens, skip_special_tokens=True)
    assert detokenized(make(tokenizer, True), tokens) == expected
