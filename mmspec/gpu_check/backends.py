"""The ladder's backends of tree attention, those that can run here."""

from mmspec.attention.ladder import RUNGS
from mmspec.attention.rung import Rung
from mmspec.gpu_check.recorder import Recorder


def backends(recorder: Recorder) -> list[Rung]:
    """Those that lack something are said with what they lack."""
    usable = []
    for rung in RUNGS.values():
        if rung.missing():
            recorder.missing(f"attention by {rung.name}: needs {rung.missing()}")
        else:
            usable.append(rung)
    return usable
