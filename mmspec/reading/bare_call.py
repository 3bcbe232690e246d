"""A call without any mark, as Llama 3 writes it: an answer that is the object alone."""

import json
from collections.abc import Mapping, Sequence

from mmspec.inputs.template import ToolSpec
from mmspec.reading.calls import ToolCall, as_calls

_LOOKED_AT = 400  # characters: where a call's beginning is longer, only more text is held back
_KEYS = ({"name", "arguments"}, {"name", "parameters"})


class BareCall:
    """Holds an answer back for as long as it may be a call of a tool that was given."""

    def __init__(self, tools: Sequence[ToolSpec]) -> None:
        self._names = [_name(tool) for tool in tools]
        self._heads = [
            _unspaced(f'{{"name":{json.dumps(name, ensure_ascii=False)},"{key}":')
            for name in self._names
            for key in ("arguments", "parameters")
        ]
        self._held = ""
        self._may_be = True

    @property
    def num_held(self) -> int:
        return len(self._held)

    def push(self, text: str) -> str:
        """What is certain to be text with some more of the answer."""
        if not (self._may_be and (self._held or text)):
            return text
        self._held += text
        begun = _unspaced(self._held.lstrip()[:_LOOKED_AT])
        if any(head.startswith(begun) or begun.startswith(head) for head in self._heads):
            return ""
        return self.give_up()

    def give_up(self) -> str:
        """The answer goes on with something else: what was held is text."""
        held, self._held, self._may_be = self._held, "", False
        return held

    def finish(self) -> str | ToolCall:
        """The answer has ended."""
        held = self.give_up()
        try:
            value = json.loads(held)
            if isinstance(value, dict) and value.keys() in _KEYS and value["name"] in self._names:
                (call,) = as_calls(value)
                return call
        except (ValueError, TypeError, RecursionError):
            pass
        return held


def _name(tool: ToolSpec) -> object:
    if not isinstance(tool, Mapping):
        return getattr(tool, "__name__", None)
    described = tool.get("function", tool)
    return described.get("name") if isinstance(described, Mapping) else None


def _unspaced(text: str) -> str:
    return "".join(text.split())
