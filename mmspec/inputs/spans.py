"""Where the images and videos sit in the token sequence."""

from typing import Literal

from torch import Tensor
from transformers import PreTrainedConfig

from mmspec.state import MediaSpan

_ID_NAMES: dict[Literal["image", "video"], tuple[str, ...]] = {
    "image": ("image_token_id", "image_token_index"),
    "video": ("video_token_id", "video_token_index"),
}


def placeholder_ids(config: PreTrainedConfig, kind: Literal["image", "video"]) -> frozenset[int]:
    """The ids of the placeholder tokens that the model replaces by features; empty if none."""
    found = (getattr(config, name, None) for name in _ID_NAMES[kind])
    return frozenset(one for one in found if isinstance(one, int) and one >= 0)


def find_spans(token_ids: Tensor, config: PreTrainedConfig) -> tuple[MediaSpan, ...]:
    """The runs of image and video placeholder tokens, in order.

    `token_ids`: (seq,). One run is one span: an image that the processor cuts into tiles with
    other tokens between them gives a span a tile; two images with nothing between give one span.
    """
    kinds: dict[int, Literal["image", "video"]] = {}
    kinds.update(dict.fromkeys(placeholder_ids(config, "video"), "video"))
    kinds.update(dict.fromkeys(placeholder_ids(config, "image"), "image"))  # where they share one
    spans: list[MediaSpan] = []
    if not kinds:
        return ()
    for position, token in enumerate(token_ids.tolist()):
        kind = kinds.get(token)
        if kind is None:
            continue
        if spans and spans[-1].stop == position and spans[-1].kind == kind:
            spans[-1] = MediaSpan(kind, spans[-1].start, position + 1)
        else:
            spans.append(MediaSpan(kind, position, position + 1))
    return tuple(spans)
