"""Installed: a function of an optional package, or what must be installed to have it."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import Parameter, signature
from typing import Any


@dataclass(frozen=True)
class Installed:
    function: Callable[..., Any]
    missing: str  # "": nothing
    module: str = ""


def first_installed(
    modules: Sequence[str], function: str, *, arguments: Collection[str], packages: str
) -> Installed:
    """The function of the first of the modules that can be imported and has it, with the
    `arguments` by their names: versions differ in them."""
    reasons = []
    for module in modules:
        try:
            found = getattr(import_module(module), function)
            lacking = _lacking(found, arguments)
        except Exception as error:  # a package built for another torch has ways of its own
            reasons.append(f"{module}: {type(error).__name__}: {error}")
            continue
        if not lacking:
            return Installed(found, "", module)
        reasons.append(f"{module}: this version's {function} has no {', '.join(lacking)}")
    return Installed(_absent, f"the package {packages} ({'; '.join(reasons)})")


def _lacking(function: Callable[..., Any], arguments: Collection[str]) -> list[str]:
    known = signature(function).parameters
    if any(own.kind is Parameter.VAR_KEYWORD for own in known.values()):
        return []
    return sorted(set(arguments) - set(known))


def _absent(*args: object, **kwargs: object) -> Any:
    raise AssertionError("a backend is asked whether anything is missing before it is used")
