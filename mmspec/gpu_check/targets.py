"""Targets of one model by how its score calls run: eager, and captured as CUDA graphs."""

from transformers import PreTrainedModel

from mmspec.build import probed_target
from mmspec.config import load_config
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting
from mmspec.gpu_check.switches import GRAPHS
from mmspec.target import Target


def built_target(model: PreTrainedModel, *overrides: str) -> Target:
    """As an engine has it, the probe included."""
    return probed_target(model, load_config(None, overrides).decode)[0]


def timed_targets(
    model: PreTrainedModel, setting: Setting, recorder: Recorder
) -> dict[str, Target]:
    """ "eager" and, where there are graphs, "graph"."""
    targets = {"eager": built_target(model, *GRAPHS.overrides(on=False))}
    if not GRAPHS.is_there:
        recorder.missing("CUDA graphs: this version of mmspec has no decode.graphs")
    elif setting.is_cuda or setting.is_small:
        targets["graph"] = built_target(model, *GRAPHS.overrides(on=True))
    return targets
