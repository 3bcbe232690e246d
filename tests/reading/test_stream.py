"""The pieces of an answer: what they are, and who drafted them."""

import random
from collections.abc import Iterator, Sequence

import pytest

from mmspec.reading import AnswerPieces, AnswerReader
from mmspec.stream import Piece

from .families import FAMILIES, TOOLS, Family, reader_of, told


class Cut:
    """Stands for a stream and its reading: the answer in pieces, each drafted by another, who is
    called by the places of its characters."""

    def __init__(
        self,
        answer: str,
        reader: AnswerReader,
        rng: random.Random,
        lengths: Sequence[int] = (1, 1, 1, 2, 3),
    ) -> None:
        self._answer, self._reader, self._rng, self._lengths = answer, reader, rng, lengths

    def reader(self) -> AnswerReader:
        return self._reader

    def __iter__(self) -> Iterator[Piece]:
        start = 0
        while start < len(self._answer):
            stop = start + self._rng.choice(self._lengths)
            yield Piece(self._answer[start:stop], f"{start} {stop}")
            start = stop

    def close(self) -> None:
        """As a stream's: what it has told is told."""
        self._answer = ""


def test_what_is_held_back_is_not_told_once_it_is_closed() -> None:
    cut = Cut("Well.<t", reader_of(FAMILIES["qwen3"], TOOLS), random.Random(0), [6])
    told = ""
    with AnswerPieces(cut, cut) as pieces:  # type: ignore[arg-type]
        while told != "Well.":
            told += next(pieces).text
    assert list(pieces) == list(cut) == [], "it decodes no more"


@pytest.mark.parametrize("tools", [TOOLS, ()], ids=["tools", "no tools"])
@pytest.mark.parametrize("name", [*sorted(FAMILIES), "no call"])
def test_each_character_is_told_with_who_drafted_it(name: str, tools: list[object]) -> None:
    begun = '{"name": "ping", "arguments": {}} <tool_call>no</tool_call> <tool'
    family, rng = FAMILIES.get(name, Family("", begun)), random.Random(name)
    answer = family.answer
    expected = told(reader_of(family, tools).parts(answer, is_last=True))
    for _ in range(20):
        cut = Cut(answer, reader_of(family, tools), rng)
        pieces = list(AnswerPieces(cut, cut))  # type: ignore[arg-type]
        for kind, is_reasoning in (("reasoning", True), ("text", False)):
            texts = [str(text) for own, text in expected if own == kind]
            own = [piece for piece in pieces if piece.is_reasoning == is_reasoning]
            assert "".join(map(str, own)) == "".join(texts)
        for piece in pieces:
            start, stop = map(int, str(piece.drafter).split())
            assert piece.text in answer[start:stop]
