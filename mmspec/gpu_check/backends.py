"""The ladder's backends of tree attention, those that can run here."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from mmspec.attention import tree
from mmspec.attention.rung import Rung
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.tree_cells import Call


def backends(recorder: Recorder) -> list[Rung]:
    """Those that lack something are said with what they lack."""
    usable = []
    for rung in _all():
        lacking = rung.missing() if hasattr(rung, "missing") else ""
        if lacking:
            recorder.missing(f"attention by {rung.name}: needs {lacking}")
        else:
            usable.append(rung)
    return usable


def chosen(call: Call) -> str:
    """Who computes the call where nobody is named."""
    ladder = _ladder()
    operands = (call.query, call.layer.keys, call.layer.values)
    if ladder is not None:
        return ladder.rung_for(*operands, call=call.call, rule=call.rule).name
    return next(rung.name for rung in _all() if rung.can_attend(*operands, rule=call.rule))


def conformance() -> Any:
    """The suite that comes with the backends; None in a version without one."""
    name = "mmspec.attention.conformance"
    return import_module(name) if find_spec(name) else None


def _ladder() -> Any:
    name = "mmspec.attention.ladder"
    return import_module(name) if find_spec(name) else None


def _all() -> list[Rung]:
    ladder = _ladder()
    rungs: list[Rung] = list(ladder.RUNGS.values() if ladder else getattr(tree, "LADDER", ()))
    return rungs
