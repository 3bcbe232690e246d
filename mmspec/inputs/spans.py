"""Where the images, videos and recordings sit in the token sequence."""

from itertools import pairwise

import numpy as np
from torch import Tensor
from transformers import PreTrainedConfig

from mmspec.state import MediaKind, MediaSpan

_ID_NAMES: dict[MediaKind, tuple[str, ...]] = {
    "image": ("image_token_id", "image_token_index"),
    "video": ("video_token_id", "video_token_index"),
    "audio": ("audio_token_id", "audio_token_index"),
}

_CONFIGS = {"image": "vision"}  # where some families (Phi-4-multimodal) keep them


def placeholder_ids(config: PreTrainedConfig, kind: MediaKind) -> frozenset[int]:
    """The ids of the placeholder tokens that the model replaces by features; empty if none."""
    owners = [config, getattr(config, f"{_CONFIGS.get(kind, kind)}_config", None)]
    found = (getattr(owner, name, None) for owner in owners for name in _ID_NAMES[kind])
    return frozenset(one for one in found if isinstance(one, int) and one >= 0)


def num_placeholders(token_ids: Tensor, config: PreTrainedConfig, kind: MediaKind) -> int:
    """How many of the tokens (seq,) are such placeholders."""
    return sum(int((token_ids == one).sum()) for one in placeholder_ids(config, kind))


def find_spans(token_ids: Tensor, config: PreTrainedConfig) -> tuple[MediaSpan, ...]:
    """The runs of image, video and audio placeholder tokens, in order.

    `token_ids`: (seq,). One run is one span: an image that the processor cuts into tiles with
    other tokens between them gives a span a tile; two images with nothing between give one span.
    """
    kinds: tuple[MediaKind, ...] = ("audio", "video", "image")  # the last where they share a token
    ids = token_ids.numpy()
    of = np.zeros(ids.shape, np.int8)  # 0 is text
    for number, kind in enumerate(kinds, start=1):
        for one in placeholder_ids(config, kind):
            of[ids == one] = number
    borders = np.flatnonzero(np.diff(of, prepend=-1, append=-1)).tolist()
    runs = ((int(of[start]), start, stop) for start, stop in pairwise(borders))
    return tuple(MediaSpan(kinds[number - 1], *run) for number, *run in runs if number)
