"""One answer as frameworks stream it: its text as it becomes certain, tool calls apart."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Self

from mmspec.engine import Engine
from mmspec.integrations.joined import AsyncAnswer, IsWanted, stream
from mmspec.integrations.tool_calls import ToolCall, ToolCallReader
from mmspec.requests import Request, Result
from mmspec.stream import Piece


class _Told:
    """Once the answer has ended, `rest`, `calls` and `result` are the whole answer's."""

    def __init__(self) -> None:
        self.rest = ""  # text that might have become a call
        self.result: Result
        self._reader: ToolCallReader | None = None

    @property
    def calls(self) -> Sequence[ToolCall]:
        return self._reader.calls if self._reader else ()

    def _begin(self, request: Request) -> None:
        self._reader = ToolCallReader(request.tools) if request.tools else None

    def _read(self, piece: Piece) -> str:
        return self._reader.push(piece.text) if self._reader else piece.text

    def _end(self, result: Result) -> None:
        self.result = result
        self.rest = self._reader.finish() if self._reader else ""


class AnswerStream(_Told):
    """A context manager that yields the text; leaving it early ends the decoding."""

    def __init__(self, engine: Engine, request: Request, is_wanted: IsWanted = None) -> None:
        super().__init__()
        self._begin(request)
        self._stream = stream(engine, request, is_wanted)

    def __iter__(self) -> Iterator[str]:
        for piece in self._stream:
            if text := self._read(piece):
                yield text
        self._end(self._stream.result)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()


class AsyncAnswerStream(_Told):
    """The same for an event loop, of the request that `make` makes in another thread."""

    def __init__(self, engine: Engine, make: Callable[[], Request]) -> None:
        super().__init__()
        self.request: Request
        self._answer = AsyncAnswer(engine, make, tells_pieces=True)

    async def __aiter__(self) -> AsyncIterator[str]:
        async with aclosing(self._answer.pieces()) as pieces:
            async for piece in pieces:
                if text := self._read(piece):
                    yield text
        self._end(self._answer.result)

    async def __aenter__(self) -> Self:
        await self._answer.__aenter__()
        self.request = self._answer.request
        self._begin(self.request)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._answer.__aexit__(*error)
