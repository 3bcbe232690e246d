"""The frameworks' names for what a request may ask, in mmspec's own."""

from collections.abc import Mapping

from mmspec.errors import InputError

_NAMES = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "stop_sequences": "stop",
}


def request_options(*layers: Mapping[str, object]) -> dict[str, object]:
    """Options of a request from a component's settings and its call's; later layers win, and None
    says nothing. `tool_choice` "none" leaves the tools out.

    Raises InputError: one option under two names in a layer, a tool that has to be called.
    """
    options: dict[str, object] = {}
    for layer in layers:
        seen: dict[str, str] = {}
        for given, value in layer.items():
            name = _NAMES.get(given, given)
            if value is None:
                continue
            if name in seen:
                raise InputError(f"got {seen[name]}= and {given}=, which say the same; give one")
            seen[name], options[name] = given, value
    choice = options.pop("tool_choice", "auto")
    if choice == "none":
        options.pop("tools", None)
    elif choice != "auto":
        raise InputError(
            f"tool_choice={choice!r}: expected 'auto' or 'none'; a model's own text decides "
            "whether it calls a tool"
        )
    return options
