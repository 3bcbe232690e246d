"""One question with its right answer, and where each character of the answer comes from."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmspec.training.tiny.page import PatchLabels

NOWHERE = -1


@dataclass(frozen=True)
class FollowUp:
    """One more question about the same document, asked after the answer to the one before.

    `text_source` has one entry for each character of the answer and one for the end token: the
    index in the sample's prompt text followed by this question, or NOWHERE.
    """

    question: str
    answer: str
    text_source: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.text_source) == len(self.answer) + 1


@dataclass(frozen=True)
class Sample:
    """One question with its right answer.

    The two sources have one entry for each character of the answer and one for the end token:
    the index in `prompt_text`, or the patch of the image, or NOWHERE.
    """

    task: str
    prompt_text: str
    answer: str
    text_source: tuple[int, ...]
    patch_source: tuple[int, ...]
    pixels: NDArray[np.uint8] | None = None  # (SIDE, SIDE, 3)
    labels: PatchLabels | None = None
    follow_ups: tuple[FollowUp, ...] = ()  # in training only: many answers for one long document

    def __post_init__(self) -> None:
        assert len(self.text_source) == len(self.patch_source) == len(self.answer) + 1
        assert self.prompt_text.isascii() and self.answer.isascii()

    @cached_property
    def image(self) -> Image.Image | None:
        """The picture, as a processor takes it."""
        return None if self.pixels is None else Image.fromarray(self.pixels)

    @property
    def messages(self) -> list[dict[str, object]]:
        """The prompt as a chat in the usual format of content parts."""
        parts: list[dict[str, object]] = [{"type": "text", "text": self.prompt_text}]
        if self.pixels is not None:
            parts.insert(0, {"type": "image"})
        return [{"role": "user", "content": parts}]


def nowhere(answer: str) -> tuple[int, ...]:
    """The sources of an answer that comes from nowhere in particular."""
    return (NOWHERE,) * (len(answer) + 1)
