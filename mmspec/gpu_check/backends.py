"""The ladder's backends of tree attention, those that can run here."""

from mmspec.attention.ladder import RUNGS
from mmspec.attention.rung import Rung
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting


def backends(setting: Setting, recorder: Recorder) -> list[Rung]:
    """Those that lack something are said with what they lack."""
    usable = []
    for rung in RUNGS.values():
        if rung.name in setting.without:
            recorder.missing(f"attention by {rung.name}: an earlier try did not survive it")
        elif rung.missing():
            recorder.missing(f"attention by {rung.name}: needs {rung.missing()}")
        else:
            usable.append(rung)
    return usable
