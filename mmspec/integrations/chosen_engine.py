"""The engine of a component: one that is given, or the one that its settings name."""

from collections.abc import Mapping
from typing import Any

from mmspec.build import load
from mmspec.engine import Engine
from mmspec.errors import InputError


def chosen_engine(
    engine: Engine | None,
    *,
    model: str | None,
    drafter: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Engine:
    """`engine` itself, shared; or `model`, loaded as `mmspec.load` does it. Raises InputError where
    both or neither say how, ModelError and ConfigError."""
    if engine is None:
        if model is None:
            raise InputError("got no model; expected model= (a folder or a name) or engine=")
        return load(model, drafter=drafter, overrides=overrides or {})
    if drafter is not None or overrides:
        raise InputError("got engine= with drafter= or overrides=; expected them in mmspec.load")
    return engine
