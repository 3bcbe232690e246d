"""Targets of one model by how its score calls run."""

from transformers import PreTrainedModel

from mmspec.build import probed_target
from mmspec.config import load_config
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting
from mmspec.gpu_check.switches import GRAPHS
from mmspec.target import Target

GRAPH, EAGER, OWN = "graph", "eager", "the model's own layers"


def timed_targets(
    model: PreTrainedModel, setting: Setting, recorder: Recorder
) -> dict[str, Target]:
    """As mmspec decodes it, launch by launch; the same recorded as CUDA graphs, where there are
    any; and by the model's own layers and attention."""
    off = GRAPHS.overrides(on=False)
    targets = {EAGER: _built(model, *off), OWN: _built(model, "decode.attention=model", *off)}
    if not GRAPHS.is_there:
        recorder.missing("CUDA graphs: this version of mmspec has none")
    elif not setting.is_cuda:
        recorder.missing("CUDA graphs: there is no GPU")
    else:
        targets[GRAPH] = _built(model, *GRAPHS.overrides(on=True))
    return targets


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
