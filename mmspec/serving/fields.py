"""Fields of a JSON body, read with their types; what is there and not read is a mistake."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from mmspec.errors import nearest
from mmspec.serving.errors import ApiError, refused

T = TypeVar("T")

_TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


class Fields:
    """A body's fields. Taking one that is not there, or null, gives None."""

    def __init__(self, body: object) -> None:
        if not isinstance(body, dict):
            raise ApiError(400, f"got a body of type {type(body).__name__}; expected a JSON object")
        self.given: dict[str, Any] = body
        self._left: dict[str, object] = dict(body)
        self._known: set[str] = set()

    def take(self, name: str, kind: type[T]) -> T | None:
        """Raises ApiError for another type."""
        value = self.take_any(name)
        if value is None:
            return None
        is_right = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            is_right = True
        if not is_right:
            raise refused(name, f"got {value!r:.80}; expected {_TYPE_NAMES[kind]}")
        return value  # type: ignore[return-value]

    def take_any(self, name: str) -> object:
        self._known.add(name)
        return self._left.pop(name, None)

    def ignore(self, names: Iterable[str]) -> None:
        """Fields that change nothing of what is answered."""
        for name in names:
            self.take_any(name)

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Fields that would, and cannot be followed. Raises ApiError where one is there."""
        for name, reason in reasons.items():
            value = self.take_any(name)
            if value not in (None, False, [], {}, ""):
                raise refused(name, reason)

    def finish(self) -> None:
        """All that is known was taken. Raises ApiError for any other field."""
        for name in self._left:
            hint = nearest(name, sorted(self._known))
            raise ApiError(400, f"unknown field {name!r:.80}: {hint}", param=name)
