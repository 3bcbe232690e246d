"""What the user gave to transformers' `generate`, of which a custom loop is told but a part.

`generate` makes one list of its own processors and the user's, made for the whole batch, and drops
the streamer of a custom loop. Both stay in its call, which is the caller of the custom loop: they
are read there, nothing is changed.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

from torch import Tensor
from transformers import GenerationMixin, LogitsProcessor, PreTrainedModel, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from mmspec.errors import InputError


@dataclass(frozen=True)
class GenerateCall:
    """The user's own arguments."""

    logits_processors: tuple[LogitsProcessor, ...]
    stopping_criteria: tuple[StoppingCriteria, ...]
    prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None
    streamer: BaseStreamer | None

    @staticmethod
    def of(model: PreTrainedModel) -> "GenerateCall":
        """The innermost `model.generate(...)` that is running in this thread. Raises InputError
        where there is none."""
        code = inspect.unwrap(GenerationMixin.generate).__code__
        frame: FrameType | None = inspect.currentframe()
        while frame is not None:
            given = frame.f_locals if frame.f_code is code else {}
            if given.get("self") is model:
                return GenerateCall(
                    tuple(given["logits_processor"]),
                    tuple(given["stopping_criteria"]),
                    given["prefix_allowed_tokens_fn"],
                    given["streamer"],
                )
            frame = frame.f_back
        raise InputError(
            "mmspec.custom_generate was called by itself; expected "
            "model.generate(**inputs, custom_generate=mmspec.custom_generate)"
        )
