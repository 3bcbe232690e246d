"""ToolCall, and what of an answer is one."""

import ast
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_JSON_WORDS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class ToolCall:
    """One call that the model wants made."""

    name: str
    arguments: Mapping[str, object]
    id: str

    @property
    def arguments_json(self) -> str:
        told = json.dumps(self.arguments, ensure_ascii=False)
        try:
            told.encode()
        except UnicodeEncodeError:  # half a character
            return json.dumps(self.arguments)
        return told


def as_calls(value: object) -> Sequence[ToolCall]:
    """The calls of a message as transformers parses it, or of several. Raises ValueError for what
    is none."""
    calls = [_as_call(one) for one in (value if isinstance(value, list) else [value])]
    if not calls:
        raise ValueError("none")
    return calls


def _as_call(value: object) -> ToolCall:
    told = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(told, Mapping):
        raise ValueError("no object")
    name = told.get("name")
    arguments = told.get("arguments", told.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("no name, or no arguments")
    own = value.get("id")
    f"{name}{own}".encode()  # half a character is no part of them
    json.dumps(arguments, allow_nan=False)  # what JSON cannot say is no argument
    return ToolCall(name, arguments, own if isinstance(own, str) and own else new_id())


def as_python_calls(source: str) -> Sequence[ToolCall]:
    """Of `[f(a="b"), g()]`, or of a call a line, whose values are Python's or JSON's; or of a list
    of objects. Raises ValueError for what is none."""
    try:
        found = [_expression(statement) for statement in ast.parse(source.strip()).body]
        flat = [one for e in found for one in (e.elts if isinstance(e, ast.List) else [e])]
        return as_calls(json.loads(json.dumps([*map(_described, flat)])))
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError("no Python") from error


def _expression(statement: ast.stmt) -> ast.expr:
    if not isinstance(statement, ast.Expr):
        raise ValueError("no expression")
    return statement.value


def _described(call: ast.expr) -> object:
    if isinstance(call, ast.Dict):  # LFM2 may be asked for JSON
        return _value(call)
    if not isinstance(call, ast.Call) or call.args or None in [k.arg for k in call.keywords]:
        raise ValueError("no call by names")
    name = ast.unparse(call.func)
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError("no name")
    return {"name": name, "arguments": {one.arg: _value(one.value) for one in call.keywords}}


def _value(node: ast.expr) -> object:
    if isinstance(node, ast.Name) and node.id in _JSON_WORDS:
        return _JSON_WORDS[node.id]
    if isinstance(node, ast.List):
        return [_value(one) for one in node.elts]
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(key) for key in node.keys if key is not None]
        return dict(zip(keys, map(_value, node.values), strict=True))
    return ast.literal_eval(node)


def new_id() -> str:
    return f"call_{uuid.uuid4().hex}"
