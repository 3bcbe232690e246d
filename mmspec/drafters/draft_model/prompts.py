"""The target's prompt as the draft model reads it: its images given, thinned, told in words, or
left out."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from transformers import PreTrainedConfig

from mmspec.drafters.draft_model.captions import Captions
from mmspec.drafters.draft_model.wording import Texts
from mmspec.errors import InputError
from mmspec.inputs import InputProcessor
from mmspec.inputs.spans import placeholder_ids
from mmspec.state import MediaKind, MediaSpan, Prompt

logger = logging.getLogger(__name__)

ImagePolicy = Literal["give", "thin", "caption", "omit"]

# What of a config decides how a family's images become tokens and features.
_VISION_FIELDS = (
    "image_size", "patch_size", "spatial_merge_size", "temporal_patch_size", "in_channels",
)  # fmt: skip
_AUDIO_FIELDS = ("num_mel_bins", "max_source_positions", "n_window")
_IMAGE_FIELDS = (
    "image_seq_length", "scale_factor", "downsample_ratio", "mm_tokens_per_image",
    "image_grid_pinpoints", "vision_feature_select_strategy",
)  # fmt: skip


@dataclass(frozen=True)
class ReadPrompt:
    """What the draft model is prefilled with."""

    prompt: Prompt
    keep: list[int] | None  # indices of the tokens whose keys stay; None: all
    text_ids: list[int]  # its text alone, which is read again when the context is full

    @staticmethod
    def of_text(ids: list[int]) -> "ReadPrompt":
        return ReadPrompt(Prompt(torch.tensor(ids)), None, ids)


class PromptReader:
    """Reads the prompts of one target for one draft model."""

    def __init__(
        self,
        texts: Texts,
        images: ImagePolicy,
        *,
        takes_inputs: bool,
        inputs: InputProcessor | None,
        target_inputs: InputProcessor | None,
        captions: Captions | None,
        thin_keep: float,
    ) -> None:
        """`takes_inputs`: the target's processed inputs are the draft model's too. If not, its own
        `inputs` process the images again, where the prompt still has them."""
        self._texts = texts
        self._images = images
        self._takes_inputs = takes_inputs
        self._inputs = inputs
        self._target_inputs = target_inputs
        self._captions = captions
        self._thin_keep = thin_keep
        self._has_warned = False

    def read(self, prompt: Prompt) -> ReadPrompt:
        given = self._given(prompt) if self._images in ("give", "thin") else None
        if given is None:
            return ReadPrompt.of_text(self._texts.read_prompt(list(self._pieces(prompt))))
        keep = None
        if self._images == "thin" and given.media:
            keep = thinned(given.media, given.num_tokens, share=self._thin_keep)
        media = {n for span in given.media for n in range(span.start, span.stop)}
        text = [t for n, t in enumerate(given.token_ids.tolist()) if n not in media]
        return ReadPrompt(given, keep, text)

    def _given(self, prompt: Prompt) -> Prompt | None:
        """The prompt with its media for the draft model's own eyes; None without any, or where
        they cannot be given."""
        if self._takes_inputs and not prompt.encoded:  # by the target's own encoders
            tokens = prompt.token_ids
            read = torch.tensor(self._texts.read_prompt([tokens.tolist()]))
            for span in prompt.media:  # the placeholders are the same
                read[span.start : span.stop] = tokens[span.start : span.stop]
            return replace(prompt, token_ids=read, images=(), videos=(), audio=())
        if not prompt.media:
            return None
        if self._inputs is not None and prompt.text is not None and self._target_inputs is not None:
            text = prompt.text
            for kind, placeholder in self._target_inputs.placeholders.items():
                text = text.replace(placeholder, self._inputs.placeholders.get(kind, ""))
            try:
                return self._inputs.encode(
                    text,
                    images=list(prompt.images),
                    videos=[list(frames) for frames in prompt.videos],
                    audio=[(one, self._target_inputs.sampling_rate) for one in prompt.audio],
                    raw=True,
                )
            except InputError as error:
                self._warn(str(error))
                return None
        self._warn("the prompt came processed, without its images, as the target alone takes it")
        return None

    def _pieces(self, prompt: Prompt) -> Iterator[list[int] | str]:
        """The prompt's text with what stands in for its media."""
        tokens, begin = prompt.token_ids.tolist(), 0
        stand_ins = self._stand_ins(prompt)
        for span, stand_in in zip(prompt.media, stand_ins, strict=True):
            yield tokens[begin : span.start]
            if stand_in:
                yield stand_in
            begin = span.stop
        yield tokens[begin:]

    def _stand_ins(self, prompt: Prompt) -> list[str]:
        """A text for each span of placeholders."""
        nothing = [""] * len(prompt.media)
        if self._images != "caption" or self._captions is None or not prompt.media:
            return nothing
        if not self._captions.can_tell(prompt):
            self._warn("the prompt came processed, without its images, so none can be described")
            return nothing
        return self._captions.of(prompt)

    def _warn(self, why: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning("draft_model: images are left out for the draft model: %s", why)


def thinned(media: Sequence[MediaSpan], num_tokens: int, *, share: float) -> list[int]:
    """Indices of the tokens that stay: all text, and an even `share` of each span, one at least."""
    kept, begin = list[int](), 0
    for span in media:
        kept += range(begin, span.start)
        length = span.stop - span.start
        count = max(round(length * share), 1)
        kept += [span.start + (2 * n + 1) * length // (2 * count) for n in range(count)]
        begin = span.stop
    return [*kept, *range(begin, num_tokens)]


def takes_same_inputs(draft: PreTrainedConfig, target: PreTrainedConfig) -> bool:
    """Whether what the target's processor made of an image fits the draft model too: the same
    family, the same placeholders, the same sizes."""
    if draft.model_type != target.model_type:
        return False
    kinds = get_args(MediaKind)
    if any(placeholder_ids(draft, kind) != placeholder_ids(target, kind) for kind in kinds):
        return False
    return _fields(draft) == _fields(target)


def can_see(config: PreTrainedConfig) -> bool:
    """Whether the model has placeholders for images."""
    return bool(placeholder_ids(config, "image"))


def takes_media(config: PreTrainedConfig) -> bool:
    """Whether the model has placeholders for anything that is no text."""
    return any(placeholder_ids(config, kind) for kind in get_args(MediaKind))


def _fields(config: PreTrainedConfig) -> dict[str, object]:
    vision = getattr(config, "vision_config", None)
    audio = getattr(config, "audio_config", None)
    own = {name: getattr(config, name, None) for name in _IMAGE_FIELDS}
    own |= {f"vision.{name}": getattr(vision, name, None) for name in _VISION_FIELDS}
    return own | {f"audio.{name}": getattr(audio, name, None) for name in _AUDIO_FIELDS}
