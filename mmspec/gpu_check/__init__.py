"""Does mmspec hold what it promises on this GPU, and how fast is it? One run, in sections.

1. `setting`     what is checked where, and how long it may take   -> Setting
2. `recorder`    what a section finds, on disk as soon as found     -> Recorder
3. `sections`    smoke, kernels, plain, timings, speed, exactness, attention, ...
4. `run`         one of them, in this process                       -> SectionResult
5. `conduct`     one after the other, each in a process of its own: what it breaks is no other's
6. `bars`        what was promised, what was found, and a verdict   -> Bar
7. `report`, `tables`  what came out, in lines and as tables
"""

from mmspec.gpu_check.compiling import Compiling
from mmspec.gpu_check.conduct import Conductor, Times, plan_lines
from mmspec.gpu_check.report import has_failed, report_lines
from mmspec.gpu_check.run import run_section
from mmspec.gpu_check.sections import SECTIONS, shares_of
from mmspec.gpu_check.setting import Setting

__all__ = [
    "SECTIONS",
    "Compiling",
    "Conductor",
    "Setting",
    "Times",
    "has_failed",
    "plan_lines",
    "report_lines",
    "run_section",
    "shares_of",
]
