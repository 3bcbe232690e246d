"""Targets of one model by how its score calls run."""

from collections.abc import Collection

from transformers import PreTrainedModel

from mmspec.build_target import probed_target
from mmspec.config import load_config
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting
from mmspec.gpu_check.switches import GRAPHS
from mmspec.target import Target

GRAPH, EAGER, OWN = "graph", "eager", "the model's own layers"


def timed_targets(
    model: PreTrainedModel,
    setting: Setting,
    recorder: Recorder,
    *,
    ways: Collection[str] | None = None,
) -> dict[str, Target]:
    """As mmspec decodes it, recorded as CUDA graphs, where there are any; launch by launch; and by
    the model's own layers and attention. `ways`: of these, as far as there are graphs."""
    off = GRAPHS.overrides(on=False)
    overrides = {GRAPH: GRAPHS.overrides(on=True), EAGER: off}
    overrides[OWN] = ["decode.attention=model", *off]
    if not GRAPHS.is_there or not setting.is_cuda:
        what = "there is no GPU" if GRAPHS.is_there else "this version of mmspec has none"
        recorder.missing(f"CUDA graphs: {what}")
        del overrides[GRAPH]
        ways = ways and [EAGER]
    chosen = [way for way in overrides if ways is None or way in ways]
    return {way: _built(model, *overrides[way], *setting.overrides) for way in chosen}


def check_graphs(target: Target, recorder: Recorder, name: str) -> None:
    """That calls of a target that should replay graphs did."""
    info = getattr(getattr(target, "graphs", None), "info", None)
    recorder.found(f"{name}, graphs", info)
    recorder.check(
        info is not None and info.replayed > 0 and not info.given_up,
        f"{name}: no graphs were replayed: {getattr(info, 'given_up', '') or info}",
    )


def release(target: Target) -> None:
    """Gives back what it keeps from one cache to the next."""
    free = getattr(target, "free", None)
    if free is not None:
        free()


def _built(model: PreTrainedModel, *overrides: str) -> Target:
    """As an engine has it, the probe included."""
    return probed_target(model, load_config(None, overrides).decode)[0]
