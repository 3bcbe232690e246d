"""Installed: a function of an optional package, or what must be installed to have it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Installed:
    function: Callable[..., Any]
    missing: str  # "": nothing
    module: str = ""


def first_installed(modules: Sequence[str], function: str, *, packages: str) -> Installed:
    """The function of the first of the modules that can be imported and has it."""
    reasons = []
    for module in modules:
        try:
            return Installed(getattr(import_module(module), function), "", module)
        # A compiled package that was built for another torch fails in ways of its own.
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            reasons.append(f"{module}: {type(error).__name__}: {error}")
    return Installed(_absent, f"the package {packages} ({'; '.join(reasons)})")


def _absent(*args: object, **kwargs: object) -> Any:
    raise AssertionError("a backend is asked whether anything is missing before it is used")
