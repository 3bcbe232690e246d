"""How fast, against whom, and is it the same text: suites of prompts, methods (ours and peers),
interleaved runs, and a report.

1. `suites`, `folder`  prompts by task            -> Task
2. `methods`           ours with each drafter, transformers' own -> Method
3. `ours`, `peers`     one prompt decoded, timed  -> Run
4. `run`               interleaved pairs          -> Measurements
5. `report`            ratios with their intervals, exactness -> Report
"""

from mmspec.bench.methods import Method, parse_method, parse_peer, standard_methods
from mmspec.bench.report import Report, build_report
from mmspec.bench.run import Measurements, measure

__all__ = [
    "Measurements",
    "Method",
    "Report",
    "build_report",
    "measure",
    "parse_method",
    "parse_peer",
    "standard_methods",
]
