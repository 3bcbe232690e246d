"""JSON schemas whose objects have the keys that they name, and no others."""

from collections.abc import Iterator, Mapping
from typing import Any

_WITHIN = ("properties", "$defs", "definitions")  # names -> schemas
_OF = ("items", "anyOf", "oneOf", "allOf", "prefixItems")  # a schema, or several


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema, as frameworks make it of a class: where it does not say so itself, an object has
    no further keys, which a model could otherwise make up without end. One that puts the keys of an
    object together from several schemas is left as it is: each would forbid what others name."""
    found: dict[str, Any] = dict(schema) if _composes(schema) else _closed(schema)
    return found


def _composes(schema: Any) -> bool:
    if isinstance(schema, list):
        return any(map(_composes, schema))
    if not isinstance(schema, Mapping):
        return False
    sources = sum(key in schema for key in ("properties", "$ref", "anyOf", "oneOf"))
    all_of = schema.get("allOf", ())
    sources += len(all_of) if isinstance(all_of, list) else 0
    return sources > 1 or any(map(_composes, _parts(schema)))


def _parts(schema: Mapping[str, Any]) -> Iterator[Any]:
    for key in _WITHIN:
        named = schema.get(key)
        yield from named.values() if isinstance(named, Mapping) else ()
    yield from (schema[key] for key in _OF if key in schema)


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
