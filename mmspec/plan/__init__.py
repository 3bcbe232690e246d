"""What speculation will cost and bring, from a model's shape and a machine's figures: no weights.

1. `shape`      the model: layers, heads, widths
2. `hardware`   the machine: bytes and operations a second
3. `roofline`   seconds of one forward over some nodes: the slower of reading and computing
4. `method`     what a drafter is here: a cost and an acceptance
5. `methods`    each of them, and `heads`, those that are trained
6. `outlook`    all of them, for a batch and a context; where each starts to pay
7. `measured`   the same beside what was measured
"""

from mmspec.plan.hardware import HARDWARE, Hardware
from mmspec.plan.method import Method
from mmspec.plan.methods import standard_methods
from mmspec.plan.outlook import Outlook, Prospect, outlook
from mmspec.plan.roofline import Forward
from mmspec.plan.shape import SHAPES, ModelShape, find_shape

__all__ = [
    "HARDWARE",
    "SHAPES",
    "Forward",
    "Hardware",
    "Method",
    "ModelShape",
    "Outlook",
    "Prospect",
    "find_shape",
    "outlook",
    "standard_methods",
]
