"""LlamaIndex's messages, as mmspec takes them."""

from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from mmspec.errors import InputError
from mmspec.integrations.tool_calls import called

_ROLES = {"chatbot": "assistant", "model": "assistant"}


def as_message(message: ChatMessage) -> dict[str, Any]:
    """A message as mmspec takes it. Raises InputError for what no model here reads."""
    role = message.role.value
    parts, calls, thought = list[dict[str, Any]](), list[dict[str, Any]](), ""
    for block in message.blocks:
        if isinstance(block, TextBlock):
            parts.append({"type": "text", "text": block.text})
        elif isinstance(block, ImageBlock):
            parts.append(_picture(block))
        elif isinstance(block, ToolCallBlock):
            calls.append(called(block.tool_name, block.tool_kwargs, block.tool_call_id))
        elif isinstance(block, ThinkingBlock):
            thought += block.content or ""
        elif block.block_type != "cache":
            raise InputError(
                f"got a {type(block).__name__} in a message; expected TextBlock or ImageBlock"
            )
    converted: dict[str, Any] = {"role": _ROLES.get(role, role), "content": parts}
    if calls:
        converted["tool_calls"] = calls
    if thought:
        converted["reasoning_content"] = thought
    for name in ("name", "tool_call_id"):
        if message.additional_kwargs.get(name) is not None:
            converted[name] = message.additional_kwargs[name]
    return converted


def _picture(block: ImageBlock) -> dict[str, Any]:
    """A picture as a part. What an address says is read by mmspec, within its limits."""
    if block.image is not None:
        return {"type": "image", "image": block.resolve_image().read()}
    for key in ("path", "url"):
        if getattr(block, key) is not None:
            return {"type": "image", key: str(getattr(block, key))}
    raise InputError("got an ImageBlock without an image; expected image=, path= or url=")
