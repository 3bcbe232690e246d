"""How fast is learned when: a warm-up, then a decay."""

import math
from typing import Literal, get_args

Decay = Literal["cosine", "linear", "none"]
DECAYS = get_args(Decay)


def rate_share(progress: float, *, warmup: float, decay: Decay) -> float:
    """The share of the highest rate at `progress` (0 to 1): it rises linearly during the first
    `warmup` of the run and falls to 0 at its end. Never 0 itself, so that no step is for nothing.
    """
    if progress < warmup:
        return max(progress / warmup, 1e-3)
    left = 1.0 - (progress - warmup) / max(1.0 - warmup, 1e-9)
    share = {
        "cosine": 0.5 - 0.5 * math.cos(math.pi * left),
        "linear": left,
        "none": 1.0,
    }[decay]
    return max(share, 1e-3)
