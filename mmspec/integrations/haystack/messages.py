"""Haystack's messages and documents, as mmspec takes them."""

from typing import Any

from haystack import Document
from haystack.dataclasses import (
    ChatMessage,
    ImageContent,
    ReasoningContent,
    TextContent,
    ToolCall,
    ToolCallResult,
)

from mmspec.errors import InputError
from mmspec.inputs.passages import Passage
from mmspec.integrations.tool_calls import called


def as_passage(document: Document) -> Passage:
    """Its text; a document that has none (an image) is an empty passage, which is left out."""
    source = str(document.meta.get("file_path", ""))
    return Passage(document.content or "", id=document.id, source=source)


def as_message(message: ChatMessage) -> dict[str, Any]:
    """A message as mmspec takes it. Raises InputError for what no model here reads."""
    parts, calls = list[dict[str, Any]](), list[dict[str, Any]]()
    converted: dict[str, Any] = {"role": message.role.value, "content": parts}
    for content in message._content:
        if isinstance(content, TextContent):
            parts.append({"type": "text", "text": content.text})
        elif isinstance(content, ImageContent):
            parts.append({"type": "image", "base64": content.base64_image})
        elif isinstance(content, ToolCall):
            calls.append(called(content.tool_name, content.arguments, content.id))
        elif isinstance(content, ToolCallResult) and isinstance(content.result, str):
            parts.append({"type": "text", "text": content.result})
            converted |= {"tool_call_id": content.origin.id, "name": content.origin.tool_name}
        elif isinstance(content, ReasoningContent):
            converted["reasoning_content"] = content.reasoning_text
        else:
            raise InputError(
                f"got {type(content).__name__} in a message; expected text, images, tool calls "
                "and their results as text"
            )
    if calls:
        converted["tool_calls"] = calls
    if message.name:
        converted["name"] = message.name
    return converted
