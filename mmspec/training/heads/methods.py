"""The kinds of heads that can be trained, and how each is made for a target."""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from mmspec.config import TrainConfig
from mmspec.errors import ConfigError
from mmspec.target import Target
from mmspec.training.heads.eagle import EagleMethod
from mmspec.training.heads.eagle3 import Eagle3Method
from mmspec.training.heads.glide import GlideMethod
from mmspec.training.heads.medusa import MedusaMethod
from mmspec.training.heads.method import HeadMethod

Counts = NDArray[np.int64]  # (vocab,) how often each token is learned
METHODS: dict[str, Callable[[Target, TrainConfig, Counts], HeadMethod]] = {
    "medusa": lambda target, config, counts: MedusaMethod(target, **asdict(config.medusa)),
    "eagle": lambda target, config, counts: EagleMethod(target, **asdict(config.eagle)),
    "eagle2": lambda target, config, counts: EagleMethod(target, **asdict(config.eagle)),
    "eagle3": lambda target, config, counts: Eagle3Method(target, counts, **asdict(config.eagle3)),
    "glide": lambda target, config, counts: GlideMethod(target, **asdict(config.glide)),
}
DRAFTERS = {"medusa": "medusa", "eagle": "eagle", "eagle2": "eagle", "eagle3": "eagle",
            "glide": "glide"}  # fmt: skip  # which drafter uses a kind of head


def check_head(head: str) -> str:
    """Raises ConfigError for a kind of head that is none."""
    if head not in METHODS:
        raise ConfigError(f"head={head!r}: expected one of {', '.join(METHODS)}")
    return head
