"""LangChain's messages and documents, as mmspec takes them."""

from collections.abc import Mapping
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, ToolMessage

from mmspec.errors import InputError
from mmspec.inputs.passages import Passage
from mmspec.integrations.tool_calls import called

_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}


def as_message(message: BaseMessage) -> dict[str, Any]:
    """A message as mmspec takes it. Raises InputError for what no model here reads."""
    kind = message.type.removesuffix("MessageChunk").lower()  # of one that was streamed
    role = message.role if isinstance(message, ChatMessage) else _ROLES.get(kind)
    if role is None:
        raise InputError(
            f"got a {type(message).__name__}; expected system, human, AI, tool or chat messages"
        )
    blocks = message.content_blocks
    parts = [part for block in blocks if (part := _part(block)) is not None]
    converted: dict[str, Any] = {"role": role, "content": parts}
    thought = "".join(b.get("reasoning", "") for b in blocks if b["type"] == "reasoning")
    if thought:
        converted["reasoning_content"] = thought
    if message.name:
        converted["name"] = message.name
    if isinstance(message, ToolMessage):
        converted["tool_call_id"] = message.tool_call_id
    if isinstance(message, AIMessage) and message.tool_calls:
        calls = message.tool_calls
        converted["tool_calls"] = [called(one["name"], one["args"], one["id"]) for one in calls]
    return converted


def _part(block: Mapping[str, Any]) -> dict[str, Any] | None:
    """A content block as a part of a message; None for what is told otherwise, or not at all."""
    kind = block["type"]
    if kind in ("text", "text-plain"):
        return {"type": "text", "text": block.get("text", "")}
    if kind in ("tool_call", "tool_call_chunk", "reasoning", "invalid_tool_call"):
        return None
    if kind in ("image", "video", "audio"):
        data = block.get("base64")
        if data is not None:
            return {
                "type": kind,
                "url": f"data:{block.get('mime_type', f'{kind}/*')};base64,{data}",
            }
        for key in ("url", "path", kind):
            if block.get(key) is not None:
                return {"type": kind, key: block[key]}
    raise InputError(
        f"got a content block {str(dict(block))[:80]!r}; expected text, or a medium with base64 or "
        "a url"
    )


def as_passage(given: object) -> object:
    """A retrieved Document as a passage; anything else as it is."""
    if not isinstance(given, Document):
        return given
    source = str(given.metadata.get("source", ""))
    return Passage(given.page_content, id=str(given.id or ""), source=source)
