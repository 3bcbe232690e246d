"""Speakers: tiny models with real processors, asked in words, pictures, frames and recordings."""

import base64
import copy
import io
import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from draft_models import byte_level
from families import FAMILIES
from families.family import family
from inputs import hearing
from inputs.media_families import build_family
from inputs.video_stand_in import FrameCounter
from PIL import Image
from transformers.video_utils import make_batched_videos

from mmspec.build import build_engine
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.drafters.cascade import Cascade
from mmspec.drafters.draft_model import DraftModel
from mmspec.drafters.layer_skip import LayerSkip
from mmspec.drafters.lookahead import Lookahead
from mmspec.drafters.retrieval import Retrieval
from mmspec.engine import Engine
from mmspec.requests import Request, Result
from mmspec.training.tiny.build import build_model, build_processor

from .chats import TEMPLATE, Media
from .drafting import AnyDrafter, Knowing, Truths, compressed, growth_of, knowing, lookup
from .models import Probing
from .settings import draw_cache, draw_decode

_TOKENS = ("image_token_id", "image_token_index", "video_token_id")


class Speaker(NamedTuple):
    """`kinds` of media that it takes, as `Request` names them."""

    name: str
    model: Any  # float64
    processor: Any
    kinds: tuple[str, ...] = ()


class Frames(FrameCounter):
    """Its pixels are the frames' own, as far as noise tells them apart."""

    def __call__(self, videos: object, **_: object) -> dict[str, torch.Tensor]:
        parts, sizes = [], []
        for video in make_batched_videos(videos):
            seed = int(sum(np.asarray(frame).astype(np.int64).sum() for frame in video))
            sizes.append([len(video), 4, 4])
            noise = torch.Generator().manual_seed(seed)
            parts.append(torch.randn(len(video) * 16, 3 * 2 * 7 * 7, generator=noise))
        return {"pixel_values_videos": torch.cat(parts), "video_grid_thw": torch.tensor(sizes)}


def _sighted(name: str) -> Speaker:
    made, plain = build_family(name), FAMILIES[name].build(torch.float64)
    config, processor = plain.config, copy.deepcopy(made.processor)
    config.get_text_config().vocab_size = len(processor.tokenizer)
    for token in _TOKENS:
        if hasattr(made.config, token):
            setattr(config, token, getattr(made.config, token))
    if name == "qwen2_vl":
        config.vision_config.patch_size = 7
        processor.video_processor = Frames()
    if name == "mllama":
        processor.image_processor.max_image_tiles = config.vision_config.max_num_tiles
    model = family(name, "vision", type(plain), lambda: config).build(torch.float64)
    tokenizer = processor.tokenizer
    model.generation_config.update(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return Speaker(name, model, processor, ("images", "videos")[: 1 + FAMILIES[name].takes_video])


def _nano() -> Speaker:
    with torch.random.fork_rng(devices=[]):
        return Speaker("nano", build_model("nano").double().eval(), build_processor(), ("images",))


def _hearing() -> Speaker:
    processor = hearing.processor()
    processor.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% if message.content is string %}{{ message.content }}{% else %}"
        "{% for part in message.content %}{% if part.type == 'audio' %}"
        "<|audio_bos|><|AUDIO|><|audio_eos|>{% else %}{{ part.text }}{% endif %}{% endfor %}"
        "{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    model = hearing.model(processor, dtype=torch.float64)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    return Speaker("hearing", model, processor, ("audio",))


def _writing(merges: int) -> Speaker:
    """Text alone, in a vocabulary of bytes and so many merges."""
    tokenizer = copy.deepcopy(byte_level(merges))
    tokenizer.chat_template = TEMPLATE
    config = FAMILIES["llama"].build(torch.float64).config
    config.vocab_size = len(tokenizer) + 3  # as models are padded
    kind = type(FAMILIES["llama"].build(torch.float64))
    model = family("llama", "text", kind, lambda: config).build(torch.float64)
    return Speaker(f"writing{merges}", model, tokenizer)


_SPEAKERS: dict[str, Callable[[], Speaker]] = {
    "nano": _nano,
    "hearing": _hearing,
    **{f"writing{n}": lambda n=n: _writing(n) for n in (0, 60, 400)},  # type: ignore[misc]
    **{n: lambda n=n: _sighted(n) for n in ("qwen2_vl", "llava", "idefics3", "gemma3", "mllama")},  # type: ignore[misc]
}
SEEING = ("nano", "qwen2_vl", "llava", "idefics3", "gemma3", "mllama", "hearing")
WRITING = ("writing0", "writing60", "writing400")


@cache
def speaker(name: str) -> Speaker:
    return _SPEAKERS[name]()


@cache
def _probed(name: str, probing: Probing) -> Any:
    return probing.found(speaker(name).model)


def build(name: str, config: Config, drafters: Sequence[AnyDrafter] = ()) -> Engine:
    one, probed = speaker(name), _probed(name, Probing.of(config.decode))
    return build_engine(config, one.model, one.processor, drafters, probed=probed)


@cache
def plain_speaker(name: str) -> Engine:
    decode = DecodeConfig(max_nodes=0, controller="fixed", prefill_chunk=None, choosing="host")
    return build(name, Config(decode=decode, cache=CacheConfig(prefix_bytes=0, feature_bytes=0)))


def draw_engine(
    draw: random.Random, name: str, truths: Truths, *, is_exact: bool = True
) -> tuple[Engine, str]:
    """With drafters that need no head, and what it is made of."""
    decode, cache_config = draw_decode(draw), draw_cache(draw)
    decode.exactness = "standard"
    if is_exact:
        decode.verifier = "coupled"
    drafters = {one.name: one for one in [_draw_drafter(draw, name, truths) for _ in range(2)]}
    config = Config(decode=decode, cache=cache_config)
    told = f"{name} {'+'.join(drafters)} {decode} {cache_config}"
    return build(name, config, list(drafters.values())), told


def _draw_drafter(draw: random.Random, name: str, truths: Truths) -> AnyDrafter:
    sure = draw.choice([0.0, 0.0, 0.05, 0.3])
    size = plain_speaker(name).target.vocab_size
    growth = growth_of(draw, sure)
    match draw.choice(["knowing"] * 3 + ["lookup", "retrieval", "retrieval", "own", "cascade"]):
        case "lookup":
            return lookup(draw, sure)
        case "retrieval":
            sources = draw.sample(["online", "generated"], draw.randint(1, 2))
            match_of = draw.choice([1, 3])
            return Retrieval([], sources=sources, min_confidence=sure, min_match=match_of)
        case "cascade":
            return Cascade(lookup(draw, sure), compressed(draw, sure), max_depth=6, lower_nodes=4)
        case "own":
            one = speaker(name)
            own: list[AnyDrafter] = [
                compressed(draw, sure),
                Lookahead(window=draw.randint(1, 8), ngram=draw.randint(2, 5)),
                LayerSkip(layers=[0], max_depth=growth["max_depth"], min_confidence=sure),
                DraftModel(one.model, one.processor, **growth),
            ]
            return draw.choice(own)
    return Knowing(truths, "none", size) if draw.random() < 0.6 else knowing(draw, truths, size)


def asked_plainly(plain: Engine, truths: Truths, request: Request) -> list[Result]:
    """What plain decoding says, a sample at a time; `truths` are told. Raises what it raises."""
    own = {"n": 1, "speculate": False, "prediction": None, "is_wanted": None}
    prepared = plain.prepare(request, **own)
    ids = tuple(prepared.prompt.token_ids.tolist())  # type: ignore[union-attr]
    results = []
    for sample in range(request.sample, request.sample + request.n):
        result = plain.generate(prepared, sample=sample)
        truths[ids, request.seed or 0, sample] = result.tokens
        results.append(result)
    return results


def picture(number: int) -> Image.Image:
    """Noise, of a size of its own."""
    noise = np.random.default_rng(number)
    width, height = ((28, 28), (56, 28), (20, 40), (28, 28))[number % 4]
    return Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8))


def _as_given(draw: random.Random, image: Image.Image) -> Any:
    """In one of the forms that a user has it in."""
    file = io.BytesIO()
    image.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return draw.choice([image, image, np.asarray(image), file.getvalue(), url])


def recording(number: int) -> tuple[np.ndarray, int]:
    noise = np.random.default_rng(number)
    seconds = (0.3, 0.5, 0.8)[number % 3]
    return noise.standard_normal(int(16000 * seconds)).astype(np.float32) * 0.3, 16000


def draw_media(draw: random.Random, name: str, *, most: int = 2, as_files: bool = True) -> Media:
    """Of few, so that the same ones come again; images also `as_files`, arrays and addresses."""
    made: dict[str, Callable[[int], Any]] = {
        "images": lambda n: _as_given(draw, picture(n)) if as_files else picture(n),
        "videos": lambda n: [picture(4 * n), picture(4 * n + 3), picture(4 * n)][: 1 + n],
        "audio": recording,
    }
    media = {}
    for kind in speaker(name).kinds:
        count = draw.choice([0, 1, 1, most])
        if count:
            media[kind] = [made[kind](draw.randrange(3)) for _ in range(count)]
    return media
