"""Does mmspec hold what it promises on this GPU, and how fast is it? One run, in sections.

1. `setting`     what is checked where, and how long it may take   -> Setting
2. `recorder`    what a section finds, on disk as soon as found     -> Recorder
3. `sections`    smoke, kernels, plain, timings, speed, exactness, attention, ...
4. `run`         one after the other in this process                -> SectionResult
5. `conduct`     each in a process of its own: what one breaks is no other's
6. `bars`        what was promised, what was found, and a verdict   -> Bar
7. `report`, `tables`  what came out, in lines and as tables
"""

from mmspec.gpu_check.compiling import Compiling
from mmspec.gpu_check.conduct import Conductor, Times, plan_lines
from mmspec.gpu_check.report import has_failed, summary_lines
from mmspec.gpu_check.run import chosen_sections, run_sections
from mmspec.gpu_check.sections import SECTIONS
from mmspec.gpu_check.setting import Setting
from mmspec.gpu_check.tables import tables

__all__ = [
    "SECTIONS",
    "Compiling",
    "Conductor",
    "Setting",
    "Times",
    "chosen_sections",
    "has_failed",
    "plan_lines",
    "run_sections",
    "summary_lines",
    "tables",
]
