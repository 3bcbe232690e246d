"""Images in words, for draft models that cannot see: one caption an image, made once."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from mmspec.inputs import InputProcessor
from mmspec.state import Prompt
from mmspec.target import Target
from mmspec.tree import TokenTree

if TYPE_CHECKING:
    from PIL.Image import Image

_QUESTION = "Describe the image in one sentence."
_MAX_TOKENS = 48
_REMEMBERED = 256  # captions

Describe = Callable[["Image"], str]


class Captions:
    """One text for all images, or one of each image's own, remembered by its content."""

    def __init__(self, caption: "str | Describe") -> None:
        self._caption = caption
        self._known: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def can_tell(self, prompt: Prompt) -> bool:
        """False for a prompt that came processed, its images with it, unless one text tells of
        all."""
        if isinstance(self._caption, str) or prompt.images or prompt.videos:
            return True
        return all(span.kind == "audio" for span in prompt.media)

    def of(self, prompt: Prompt) -> list[str]:
        """A text for each span of placeholders, none for a recording; a video is told by its middle
        frame. Where images lie side by side in one span, or one has several, the first span tells
        of all."""
        if isinstance(self._caption, str):
            return ["" if span.kind == "audio" else self._caption for span in prompt.media]
        told = [""] * len(prompt.media)
        middles = [frames[len(frames) // 2] for frames in prompt.videos]
        for kind, images in (("image", list(prompt.images)), ("video", middles)):
            spans = [index for index, span in enumerate(prompt.media) if span.kind == kind]
            texts = [self._of(image) for image in images]
            if len(spans) != len(texts):
                texts, spans = [" ".join(texts)], spans[:1]
            for index, text in zip(spans, texts, strict=False):
                told[index] = text
        return told

    def _of(self, image: "Image") -> str:
        assert not isinstance(self._caption, str)
        pixels = hashlib.sha256(image.tobytes())
        pixels.update(repr((image.size, image.mode)).encode())
        key = pixels.hexdigest()
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        told = self._caption(image)
        with self._lock:
            self._known[key] = told
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return told


def describer(model: Target, inputs: InputProcessor) -> Describe:
    """Lets the model itself describe an image, greedily, in a sentence."""
    eos = model.model.generation_config.eos_token_id
    ends = {eos} if isinstance(eos, int) else set(eos or ())

    def describe(image: "Image") -> str:
        prompt = inputs.encode(_QUESTION, images=image)
        cache, tokens = model.new_cache(), list[int]()
        try:
            row = cache.open(prompt.num_tokens + _MAX_TOKENS)
            prefill = model.prefill(prompt, cache, row)
            token = int(prefill.logits.argmax())
            while token not in ends and len(tokens) < _MAX_TOKENS:
                tokens.append(token)
                score = model.score([TokenTree.root(token)], cache, [prefill.placement])[0]
                cache.commit({row: (0,)})
                token = int(score.logits[0].argmax())
        finally:
            cache.release()
        return str(inputs.tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    return describe
