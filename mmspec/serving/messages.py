"""OpenAI's chat messages -> mmspec's. Only what is named here gets through: a client from outside
must not name files of this machine."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mmspec.integrations.tool_calls import called
from mmspec.serving.errors import refused
from mmspec.serving.fields import Fields

_MEDIA = {"image_url": "image", "input_image": "image", "video_url": "video"}
_TEXTS = ("text", "input_text", "output_text", "refusal")


def read_messages(given: object, *, max_media: int) -> list[dict[str, Any]]:
    """Raises ApiError; what is wrong with an image or a role the engine says later."""
    if not isinstance(given, list) or not given:
        raise refused("messages", f"got {given!r:.80}; expected a list of one or more messages")
    messages = [read_message(message, f"messages[{index}]") for index, message in enumerate(given)]
    check_media(messages, "messages", max_media=max_media)
    return messages


def check_media(messages: Sequence[Mapping[str, Any]], where: str, *, max_media: int) -> None:
    """Raises ApiError where they are too many."""
    contents = [message["content"] for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    num_media = sum(part["type"] != "text" for part in parts)
    if num_media > max_media:
        raise refused(
            where, f"got {num_media} images, videos and recordings; expected {max_media} or less"
        )


def read_message(given: object, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise refused(where, f'got {given!r:.80}; expected {{"role": "user", "content": "..."}}')
    fields = Fields(given)
    content = fields.take_any("content")
    message: dict[str, Any] = {"role": fields.take_any("role"), "content": content}
    if isinstance(content, list):
        message["content"] = [_part(p, f"{where}.content[{i}]") for i, p in enumerate(content)]
    elif not isinstance(content, str | None):
        raise refused(
            f"{where}.content", f"got {content!r:.80}; expected a text or a list of parts"
        )
    for name in ("name", "tool_call_id", "reasoning_content"):
        value = fields.take(name, str)
        if value is not None:
            message[name] = value
    calls = fields.take("tool_calls", list)
    if calls:
        message["tool_calls"] = [_call(c, f"{where}.tool_calls[{i}]") for i, c in enumerate(calls)]
    fields.ignore(("refusal", "annotations", "audio", "function_call", "reasoning"))
    fields.finish()
    return message


def _part(given: object, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise refused(where, f'got {given!r:.80}; expected {{"type": "text", "text": "..."}}')
    kind = given.get("type")
    if not isinstance(kind, str):
        raise refused(where, f"got a part of type {kind!r:.40}; expected a text as its type")
    if kind in _TEXTS:
        return {"type": "text", "text": given.get(kind if kind == "refusal" else "text")}
    if kind in _MEDIA:
        name = "image_url" if kind == "input_image" else kind
        url = given.get(name)
        if isinstance(url, dict):
            url = url.get("url")
        if not isinstance(url, str):
            raise refused(where, f'expected {{"type": "{kind}", "{name}": {{"url": "data:..."}}}}')
        if url[:8].lower().startswith(("data:", "http://", "https://")):
            return {"type": _MEDIA[kind], "url": url}
        raise refused(
            where,
            f"got the address {url[:40]!r}; expected a data: URL, or an http(s) one where the "
            "server allows it",
        )
    if kind == "input_audio":
        audio = given.get(kind)
        data = audio.get("data") if isinstance(audio, dict) else None
        if not isinstance(data, str):
            form = '{"type": "input_audio", "input_audio": {"data": base64, "format": "wav"}}'
            raise refused(where, f"expected {form}")
        return {"type": "audio", "base64": data}
    raise refused(
        where,
        f"got a part of type {kind!r:.40}; expected one of {', '.join((*_TEXTS, *_MEDIA))}, "
        "input_audio",
    )


def _call(given: object, where: str) -> dict[str, Any]:
    function = given.get("function") if isinstance(given, dict) else None
    if not isinstance(given, dict) or not isinstance(function, dict):
        raise refused(where, f"got {given!r:.80}; expected a call of a function")
    return read_call(function, given.get("id"), where)


def read_call(function: Mapping[str, Any], call_id: object, where: str) -> dict[str, Any]:
    """With its arguments as an object, which chat templates write out."""
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise refused(where, f"the arguments are no JSON: {error}") from error
    name = function.get("name")
    if not isinstance(name, str):
        raise refused(f"{where}.name", f"got {name!r:.80}; expected a text")
    return called(name, arguments, call_id)
