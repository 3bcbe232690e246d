"""Settings of one run: how long, how fast, how much at once."""

from dataclasses import dataclass
from functools import partial

from mmspec.errors import ConfigError, check_setting
from mmspec.training.schedule import DECAYS, Decay

_check = partial(check_setting, "train")


@dataclass(frozen=True)
class Settings:
    """With `steps` the same settings give the same weights on a CPU; `minutes` depend on the
    clock. One of the two ends a run."""

    steps: int | None = None
    minutes: float | None = None
    rate: float | None = None  # the highest; None: the kind's own
    warmup: float = 0.05  # share of the run in which the rate rises
    decay: Decay = "cosine"
    weight_decay: float = 0.0
    clip: float = 0.5  # the gradients' norm, at most
    batch_tokens: int = 4096  # with padding
    accumulate: int = 1  # batches a step
    seed: int = 0
    top_k: int = 4  # of a draft's best tokens, in the evaluation
    checkpoint_every_s: float = 120.0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ConfigError(
                f"steps={self.steps}, minutes={self.minutes}: expected one of the two, which ends "
                "the training"
            )
        _check("steps", self.steps is None or self.steps >= 1, self.steps, "1 or more")
        _check("minutes", self.minutes is None or self.minutes > 0, self.minutes, "more than 0")
        _check("rate", self.rate is None or self.rate > 0, self.rate, "more than 0")
        _check("warmup", 0 <= self.warmup < 1, self.warmup, "in [0, 1)")
        _check("decay", self.decay in DECAYS, self.decay, ", ".join(DECAYS))
        _check("clip", self.clip > 0, self.clip, "more than 0")
        _check("weight_decay", self.weight_decay >= 0, self.weight_decay, "0 or more")
        _check("top_k", self.top_k >= 1, self.top_k, "1 or more")
        _check("batch_tokens", self.batch_tokens >= 1, self.batch_tokens, "1 or more")
        _check("accumulate", self.accumulate >= 1, self.accumulate, "1 or more")
