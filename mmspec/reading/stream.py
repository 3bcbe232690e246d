"""AnswerPieces: an answer as it comes, in pieces that say who drafted them and what they are."""

from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import groupby

from mmspec.answers import Stream
from mmspec.beginnings import num_shared
from mmspec.reading.calls import ToolCall
from mmspec.reading.reader import Part, Reasoning
from mmspec.reading.reading import Answer, Reading
from mmspec.requests import Result
from mmspec.stream import Piece


class AnswerPieces:
    """The pieces of a stream without its marks and calls; `answer` once it has ended.

    A context manager, as the stream is: leaving it, or `close`, ends the decoding.
    """

    def __init__(self, stream: Stream, reading: Reading) -> None:
        """`stream`: of the reading's request."""
        self._stream = stream
        self._reading = reading
        self._reader = reading.reader()
        self._untold = deque[tuple[str, str | None]]()  # characters, and who drafted them
        self._generator = self._generate()

    def __iter__(self) -> Iterator[Piece]:
        return self._generator

    def __next__(self) -> Piece:
        return next(self._generator)

    @property
    def result(self) -> Result:
        """As it was decoded. Raises InputError while it is being generated."""
        return self._stream.result

    @cached_property  # calls without an id of their own are given one as they are read
    def answer(self) -> Answer:
        """Raises InputError while it is being generated."""
        return self._reading.answer(self._stream.result)

    def close(self) -> None:
        self._generator.close()  # type: ignore[attr-defined]
        self._stream.close()

    def __enter__(self) -> "AnswerPieces":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _generate(self) -> Iterator[Piece]:
        for piece in self._stream:
            self._untold += ((character, piece.drafter) for character in piece.text)
            yield from self._told(self._reader.parts(piece.text))
        yield from self._told(self._reader.parts("", is_last=True))

    def _told(self, parts: Iterable[Part]) -> Iterator[Piece]:
        texts = [
            (part.text, True) if isinstance(part, Reasoning) else (part, False)
            for part in parts
            if not isinstance(part, ToolCall)
        ]
        drafters = iter(self._drafters("".join(text for text, _ in texts)))
        for text, is_reasoning in texts:
            drafted = zip(text, drafters, strict=False)
            for drafter, group in groupby(drafted, lambda pair: pair[1]):
                yield Piece("".join(character for character, _ in group), drafter, is_reasoning)

    def _drafters(self, told: str) -> list[str | None]:
        """Of each character that is told. What is decided and not told was a mark, between what
        stands before it and what behind."""
        num_decided = len(self._untold) - self._reader.num_held
        decided = [self._untold.popleft() for _ in range(num_decided)]
        before = num_shared("".join(character for character, _ in decided), told)
        behind = max(before, len(decided) - (len(told) - before))
        found = [drafter for _, drafter in decided[:before] + decided[behind:]]
        return found + [None] * (len(told) - len(found))
