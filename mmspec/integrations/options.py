"""What a framework's call asks, in its names for it -> a request."""

from collections.abc import Collection, Mapping
from typing import Any

from mmspec.errors import InputError, nearest
from mmspec.integrations.closed_schema import closed
from mmspec.integrations.guided import JsonGuide
from mmspec.integrations.passages import Placement, with_passages
from mmspec.integrations.tool_calls import call_schema
from mmspec.params import NAMES_ELSEWHERE, by_our_names
from mmspec.requests import FIELD_NAMES, Messages, Request, build_request


def component_settings(given: Mapping[str, object], own: Collection[str]) -> dict[str, object]:
    """A component's settings, of which those that are a request's and none of its `own` fields
    join its `options`. Raises InputError that names the nearest for one that is neither."""
    settings = {name: value for name, value in given.items() if name in own}
    options: dict[str, object] = {}
    for name, value in given.items():
        if name in own:
            continue
        if NAMES_ELSEWHERE.get(name, name) not in FIELD_NAMES:
            raise InputError(f"unknown setting {name!r}: {nearest(name, [*own, *FIELD_NAMES])}")
        options[name] = value
    if options:
        before = settings.get("options") or {}
        assert isinstance(before, Mapping)
        settings["options"] = {**before, **options}
    return settings


def component_request(
    prompt: str | Messages,
    options: Mapping[str, object],
    *,
    placement: Placement,
    guide: JsonGuide,
) -> Request:
    """The request of a call's `options`: its passages put where they belong, and its `json_schema`
    followed, whose objects have no other keys than it names unless it says so itself. So is the
    call of a tool that `tool_choice` wants; with "none" the tools are left out. Raises InputError,
    MissingExtraError."""
    own = with_passages(options, prompt, placement=placement)
    schema: Any = own.pop("json_schema", None)
    choice = own.pop("tool_choice", None)
    if choice == "none":
        own.pop("tools", None)
    tools: Any = own.get("tools") or ()
    call = call_schema(tools, choice)
    if schema is not None and call is not None:
        raise InputError("got json_schema and a tool_choice that forces a call; give one of them")
    schema = call or schema
    if schema is not None:
        others = own.get("logits_processors") or ()
        assert isinstance(others, list | tuple)
        given = closed(schema) if isinstance(schema, Mapping) else schema
        own["logits_processors"] = [*others, guide.matching(given)]
    return build_request(prompt, own)


def request_options(*layers: Mapping[str, object]) -> dict[str, object]:
    """Options of a request from a component's settings and its call's; later layers win, and None
    says nothing. Raises InputError for one option under two names in a layer."""
    options: dict[str, object] = {}
    for layer in layers:
        options |= by_our_names(layer)
    return options
