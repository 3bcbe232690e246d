"""Does mmspec hold what it promises on this GPU, and how fast is it? One run, in sections.

1. `setting`     what is checked where, and how long it may take   -> Setting
2. `recorder`    what a section finds, on disk as soon as found     -> Recorder
3. `sections`    kernels, exactness, timings, attention, speed, train
4. `run`         one after the other; one that fails costs no other -> SectionResult
5. `report`      what came out, in lines
"""

from mmspec.gpu_check.report import has_failed, summary_lines
from mmspec.gpu_check.run import run_sections
from mmspec.gpu_check.sections import SECTIONS
from mmspec.gpu_check.setting import Setting

__all__ = ["SECTIONS", "Setting", "has_failed", "run_sections", "summary_lines"]
