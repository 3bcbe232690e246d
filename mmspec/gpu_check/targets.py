"""Targets of one model by how its score calls run."""

from collections.abc import Collection

from transformers import PreTrainedModel

from mmspec.build_target import probed_target
from mmspec.config import load_config
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting
from mmspec.target import Target
from mmspec.target.graphs import GraphInfo

GRAPH, EAGER, OWN = "graph", "eager", "the model's own layers"
_NO_GRAPHS = "CUDA graphs: there is no GPU"


def timed_targets(
    model: PreTrainedModel,
    setting: Setting,
    recorder: Recorder,
    *,
    ways: Collection[str] | None = None,
) -> dict[str, Target]:
    """As mmspec decodes it, recorded as CUDA graphs, where there are any; launch by launch; and by
    the model's own layers and attention. `ways`: of these, as far as there are graphs."""
    off = "decode.cuda_graphs=never"
    overrides = {GRAPH: [], EAGER: [off], OWN: ["decode.attention=model", off]}
    if not setting.is_cuda:
        recorder.missing(_NO_GRAPHS)
        del overrides[GRAPH]
        ways = ways and [EAGER]
    chosen = [way for way in overrides if ways is None or way in ways]
    return {way: _built(model, *overrides[way], *setting.overrides) for way in chosen}


def check_replayed(info: GraphInfo | None, name: str, setting: Setting, recorder: Recorder) -> None:
    """That calls which should replay graphs did."""
    if not setting.is_cuda:
        recorder.missing(_NO_GRAPHS)
        return
    recorder.found(f"{name}, graphs", info)
    recorder.check(
        info is not None and info.replayed > 0 and not info.given_up,
        f"{name}: no graphs were replayed: {(info and info.given_up) or info}",
    )


def _built(model: PreTrainedModel, *overrides: str) -> Target:
    """As an engine has it, the probe included."""
    return probed_target(model, load_config(None, overrides).decode)[0]
