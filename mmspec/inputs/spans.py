"""Where the images, videos and recordings sit in the token sequence."""

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


def find_spans(token_ids: Tensor, config: PreTrainedConfig) -> tuple[MediaSpan, ...]:
    """The runs of image, video and audio placeholder tokens, in order.

    `token_ids`: (seq,). One run is one span: an image that the processor cuts into tiles with
    other tokens between them gives a span a tile; two images with nothing between give one span.
    """
    kinds: dict[int, MediaKind] = {}
    kinds.update(dict.fromkeys(placeholder_ids(config, "audio"), "audio"))
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
