"""JSON schemas whose objects have the keys that they name, and no others."""

from collections.abc import Mapping
from typing import Any

_WITHIN = ("properties", "$defs", "definitions")  # names -> schemas
_OF = ("items", "anyOf", "oneOf", "allOf", "prefixItems")  # a schema, or several


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema, as frameworks make it of a class: where it does not say so itself, an object has
    no further keys, which a model could otherwise make up without end."""
    found: dict[str, Any] = _closed(schema)
    return found


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = dict(schema)
    for key in _WITHIN:
        if isinstance(found.get(key), Mapping):
            found[key] = {name: _closed(one) for name, one in found[key].items()}
    for key in _OF:
        if key in found:
            found[key] = _closed(found[key])
    if "properties" in found:
        found.setdefault("additionalProperties", False)
    return found
