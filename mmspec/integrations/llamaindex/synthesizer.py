"""PassageSynthesizer: the retrieved nodes of a query engine, as passages."""

from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ImageBlock, TextBlock
from llama_index.core.response_synthesizers import BaseSynthesizer

from mmspec.errors import InputError


class _Answer(str):
    """An answer on its way to the query engine's response, whose metadata is to hold `raw`."""

    raw: Mapping[str, Any]


class PassageSynthesizer(BaseSynthesizer):
    """Asks the query with the retrieved nodes' texts as passages: mmspec's own template writes them
    into the prompt, control tokens made harmless, and the drafter copies from them. Images of
    nodes go with the question where it is made with `multimodal=True`.

    The response's metadata holds, beside that of the nodes, what `MmspecLLM` says in `raw`; a
    streamed one has no end to say it at.
    """

    def get_response(self, query_str: str, text_chunks: Sequence[str], **kwargs: Any) -> Any:
        return self._asked(ChatMessage(query_str), passages=list(text_chunks), **kwargs)

    async def aget_response(self, query_str: str, text_chunks: Sequence[str], **kwargs: Any) -> Any:
        return await self._aasked(ChatMessage(query_str), passages=list(text_chunks), **kwargs)

    def get_response_from_messages(
        self, query_str: str, message_chunks: Sequence[ChatMessage], **kwargs: Any
    ) -> Any:
        question, passages = _question(query_str, message_chunks)
        return self._asked(question, passages=passages, **kwargs)

    async def aget_response_from_messages(
        self, query_str: str, message_chunks: Sequence[ChatMessage], **kwargs: Any
    ) -> Any:
        question, passages = _question(query_str, message_chunks)
        return await self._aasked(question, passages=passages, **kwargs)

    def _asked(self, question: ChatMessage, **kwargs: Any) -> Any:
        if self._streaming:
            return (piece.delta or "" for piece in self._llm.stream_chat([question], **kwargs))
        return self._told(self._llm.chat([question], **kwargs))

    async def _aasked(self, question: ChatMessage, **kwargs: Any) -> Any:
        if self._streaming:
            stream = await self._llm.astream_chat([question], **kwargs)
            return (piece.delta or "" async for piece in stream)
        return self._told(await self._llm.achat([question], **kwargs))

    def _told(self, response: ChatResponse) -> _Answer:
        answer = _Answer(response.message.content or self._empty_response)
        answer.raw = response.raw or {}
        return answer

    def _prepare_response_output(self, response_str: Any, source_nodes: list[Any]) -> Any:
        response = super()._prepare_response_output(response_str, source_nodes)
        if isinstance(response_str, _Answer):
            response.metadata = {**(response.metadata or {}), **response_str.raw}
        return response

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: Mapping[str, Any]) -> None:
        if prompts:
            raise InputError(
                f"got the prompts {sorted(prompts)}; PassageSynthesizer has none: mmspec's "
                "own is set by MmspecLLM(options={'passage_template': ...})"
            )


def _question(query: str, chunks: Sequence[ChatMessage]) -> tuple[ChatMessage, list[str]]:
    """The query with all images of the chunks, and the chunks' texts."""
    blocks = [block for chunk in chunks for block in chunk.blocks]
    images = [block for block in blocks if isinstance(block, ImageBlock)]
    passages = [block.text for block in blocks if isinstance(block, TextBlock)]
    return ChatMessage(blocks=[*images, TextBlock(text=query)]), passages
