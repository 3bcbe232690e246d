"""What chats and responses ask for alike, though each has names of its own for some of it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmspec.engine import Engine
from mmspec.errors import InputError
from mmspec.inputs.template import variables
from mmspec.integrations.tool_calls import call_schema
from mmspec.requests import Request
from mmspec.serving.errors import ApiError, refused
from mmspec.serving.fields import Fields

_MOST_TOP = 20
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_SWITCHES = ("enable_thinking", "thinking")  # of templates, which the least efforts put off
REFUSED = {
    "moderation": "nothing here moderates; leave it out",
    "verbosity": "is no option of this model; say it in a message",
}


def read_chat_fields(fields: Fields) -> dict[str, Any]:
    """Options of a request: a predicted answer, and switches of the chat template."""
    fields.refuse(REFUSED)
    options = _prediction(fields)
    arguments = fields.take("chat_template_kwargs", dict)
    if arguments:
        options["template_arguments"] = _switches(arguments)
    return options


def read_effort(fields: Fields, name: str, where: str) -> str | None:
    """How much the model is to think."""
    effort = fields.take(name, str)
    if effort is not None and effort not in _EFFORTS:
        raise refused(where, f"got {effort!r:.40}; expected one of {', '.join(_EFFORTS)}")
    return effort


def with_effort(engine: Engine, request: Request, effort: str | None, where: str) -> Request:
    """By the variables that the chat template reads. Raises ApiError where it reads none."""
    if effort is None or engine.inputs is None:
        return request
    given = request.template_arguments or {}
    read = variables(engine.inputs.template_source(given, request.tools))
    is_least = effort in ("none", "minimal")
    told: dict[str, object] = {name: not is_least for name in _SWITCHES if name in read}
    if "reasoning_effort" in read and not (told and is_least):
        told["reasoning_effort"] = effort
    if not told:
        raise refused(
            where,
            "this model's chat template reads none of reasoning_effort, "
            f"{', '.join(_SWITCHES)}; leave it out",
        )
    return replace(request, template_arguments={**told, **given})


def read_length(fields: Fields, name: str) -> int | None:
    """Tokens of the answer."""
    length = fields.take(name, int)
    if length is not None and length < 1:
        raise refused(name, f"got {length}; expected a whole number >= 1")
    return length


def read_top(fields: Fields) -> int | None:
    """How many tokens are told beside each one that was chosen."""
    top = fields.take("top_logprobs", int)
    if top is not None and not 0 <= top <= _MOST_TOP:
        raise refused("top_logprobs", f"got {top}; expected 0 to {_MOST_TOP}")
    return top


def read_tools(
    fields: Fields, options: Mapping[str, Any], *, is_flat: bool
) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """Tools as templates read them, where they may be called, and the schema of the call that has
    to be made, if any. A flat tool is its function. `options` are the request's others."""
    tools, choice = fields.take("tools", list), fields.take_any("tool_choice")
    found = [_tool(tool, is_flat=is_flat) for tool in tools or ()]
    try:
        schema = call_schema(found, choice)
    except InputError as error:
        raise ApiError(400, str(error), param="tool_choice") from error
    except RecursionError as error:
        raise refused("tools", "their parameters are nested too deep") from error
    if schema is not None and options.get("ignore_eos"):
        raise refused("tool_choice", "a call ends by itself; leave out ignore_eos, or ask for none")
    if fields.take("parallel_tool_calls", bool) is False and schema is None:
        raise refused("parallel_tool_calls", "a model's own text decides how many it makes")
    return {"tools": found} if found and choice != "none" else {}, schema


def _tool(given: object, *, is_flat: bool) -> Mapping[str, Any]:
    tool: dict[str, Any] = given if isinstance(given, dict) else {}
    if is_flat and tool.get("type") == "function":
        described = {name: value for name, value in tool.items() if name != "type"}
        tool = {"type": "function", "function": described}
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        inside = '"name": ...' if is_flat else '"function": {"name": ...}'
        raise refused("tools", f'got {given!r:.80}; expected {{"type": "function", {inside}}}')
    return tool


def read_schema(
    given: Mapping[str, Any] | None, name: str, options: Mapping[str, Any], *, is_flat: bool
) -> Mapping[str, Any] | None:
    """That the field `name` wants the answer to follow. A flat one stands beside its type."""
    if given is None or given.get("type") == "text":
        return None
    schema = _schema(given, name, is_flat=is_flat)
    for other in ("tools", "ignore_eos"):
        if options.get(other):
            raise refused(name, f"JSON does not go with {other}; give one of them")
    return schema


def _schema(given: Mapping[str, Any], name: str, *, is_flat: bool) -> Mapping[str, Any]:
    if given.get("type") == "json_object":
        return {"type": "object"}
    described = given if is_flat else given.get("json_schema")
    schema = described.get("schema") if isinstance(described, Mapping) else None
    if given.get("type") == "json_schema" and isinstance(schema, dict):
        return schema
    inside = '"name": "...", "schema": {...}'
    inside = inside if is_flat else f'"json_schema": {{{inside}}}'
    raise refused(
        name,
        f'got {given!r:.80}; expected {{"type": "text"}}, {{"type": "json_object"}} or '
        f'{{"type": "json_schema", {inside}}}',
    )


def _prediction(fields: Fields) -> dict[str, Any]:
    given = fields.take("prediction", dict)
    if given is None:
        return {}
    own = Fields(given)
    kind, content = own.take("type", str), own.take_any("content")
    own.finish()
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        known = [text for text in texts if isinstance(text, str)]
        content = "".join(known) if len(known) == len(texts) else None
    if kind != "content" or not isinstance(content, str):
        raise refused(
            "prediction", f'got {given!r:.80}; expected {{"type": "content", "content": "..."}}'
        )
    return {"prediction": content}


def _switches(arguments: dict[str, Any]) -> dict[str, Any]:
    """Variables of the chat template: nothing that could stand for text of a message."""
    for name, value in arguments.items():
        if not isinstance(value, bool | int | float | None) or name == "chat_template":
            raise refused(
                "chat_template_kwargs",
                f"got {name}={value!r:.60}; expected switches and numbers, as enable_thinking",
            )
    return arguments
