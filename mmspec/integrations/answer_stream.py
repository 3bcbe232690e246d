"""AnswerStream: one answer as frameworks stream it, tool calls apart from its text."""

from collections.abc import Iterator, Sequence
from typing import Self

from mmspec.engine import Engine
from mmspec.integrations.tool_calls import ToolCall, ToolCallReader
from mmspec.requests import Request, Result


class AnswerStream:
    """A context manager that yields the answer's text as it becomes certain. Once it has ended,
    `rest`, `calls` and `result` are the whole answer's; leaving it early ends the decoding."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self._stream = engine.stream(request)
        self._reader = ToolCallReader() if request.tools else None
        self.rest = ""  # text that might have become a call

    def __iter__(self) -> Iterator[str]:
        reader = self._reader
        for piece in self._stream:
            text = reader.push(piece.text) if reader else piece.text
            if text:
                yield text
        self.rest = reader.finish() if reader else ""

    @property
    def calls(self) -> Sequence[ToolCall]:
        return self._reader.calls if self._reader else ()

    @property
    def result(self) -> Result:
        return self._stream.result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()
