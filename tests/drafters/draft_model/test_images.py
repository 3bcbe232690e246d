"""Images for the draft model: given, thinned, told, left out; on whatever family."""

import copy
import logging
from functools import cache
from itertools import cycle
from typing import Any

import pytest
import torch
from draft_models import padded, shuffled, text_only
from families import FAMILIES, prompt_inputs
from matrix import model_of
from PIL import Image
from ragged import target_of
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel
from transformers.utils import ModelOutput

import mmspec
from mmspec.config import Config, DecodeConfig
from mmspec.drafters.draft_model import DraftModel, captions
from mmspec.drafters.draft_model.captions import Captions
from mmspec.drafters.draft_model.drafter import BoundDraftModel
from mmspec.drafters.draft_model.prompts import PromptReader, takes_same_inputs, thinned
from mmspec.drafters.draft_model.vocabulary import SharedVocabulary
from mmspec.drafters.draft_model.wording import SharedTexts
from mmspec.engine import Engine
from mmspec.inputs import from_inputs
from mmspec.inputs.rows import split_rows
from mmspec.requests import Result
from mmspec.state import MediaSpan, Prompt
from mmspec.target import Target
from mmspec.target.load import load_model, load_processor, resolve_path

VISION = [family.name for family in FAMILIES.values() if family.kind == "vision"]
FIXED = Config(decode=DecodeConfig(controller="fixed", max_nodes=16))
UNPROBED = Config(decode=DecodeConfig(controller="fixed", max_nodes=16, probe=False))
ASK = {
    "prompt": "What is written there? 😀",
    "max_new_tokens": 24,
    "temperature": 0.0,
    "ignore_eos": True,
}


@cache
def tiny() -> tuple[PreTrainedModel, Any]:
    """The bundled model in float64, and its processor."""
    path = resolve_path("tiny-vlm")
    return load_model(path, dtype="float64"), load_processor(path)


def width(image: Image.Image) -> str:
    """A caption."""
    return str(image.width)


def engine_of(drafter: DraftModel) -> Engine:
    return mmspec.load(*tiny(), config=UNPROBED, drafter=drafter)


def picture(seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 255, (48, 64, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def checked(engine: Engine, **request: Any) -> Result:
    """The result, equal to plain decoding and with drafts in it."""
    result = engine.generate(**request)
    assert result.tokens == engine.generate(**request, speculate=False).tokens
    assert "draft_model" in result.stats.by_drafter
    assert not bound(engine).cache.rows
    return result


def bound(engine: Engine) -> BoundDraftModel:
    drafter = engine.drafters[0]
    assert isinstance(drafter, BoundDraftModel)
    return drafter


def read(engine: Engine, **request: Any) -> tuple[list[int], int]:
    """The draft model's own tokens of the prompt, and how many of them stay in its cache."""
    assert engine.inputs is not None
    options = {name: value for name, value in request.items() if name in ("images", "videos")}
    prompt = engine.inputs.encode(request["prompt"], **options)
    got = bound(engine).prompts.read(prompt)
    return got.prompt.token_ids.tolist(), got.prompt.num_tokens if got.keep is None else len(
        got.keep
    )


# LAW


@pytest.mark.parametrize("images", ["give", "thin", "caption", "omit"])
def test_every_policy_drafts_for_a_model_that_sees(images: Any) -> None:
    engine = engine_of(DraftModel(*tiny(), images=images, top_k=1, min_confidence=0.0))
    result = checked(engine, **ASK, images=picture())
    tokens, kept = read(engine, **ASK, images=picture())
    assert tokens.count(3) == (256 if images in ("give", "thin") else 0)
    assert len(tokens) - kept == (192 if images == "thin" else 0)
    if images == "give":
        assert result.stats.by_drafter["draft_model"].acceptance == 1.0


def test_a_text_only_drafter_of_the_same_words_drafts_for_a_model_that_sees() -> None:
    model, processor = tiny()
    draft = text_only(model)
    engine = engine_of(DraftModel(draft, processor.tokenizer, top_k=1, min_confidence=0.0))
    assert checked(engine, **ASK).stats.by_drafter["draft_model"].acceptance == 1.0
    result = checked(engine, **ASK, images=[picture(), picture(1)])
    assert 0.0 < result.stats.by_drafter["draft_model"].acceptance
    assert 3 not in read(engine, **ASK, images=[picture(), picture(1)])[0]


def test_another_tokenizer_of_the_same_model_drafts_all_of_a_greedy_text() -> None:
    """Other ids for the same bytes: aligned by text, nearly all is accepted."""
    model, processor = tiny()
    draft = shuffled(text_only(model), processor.tokenizer)
    engine = engine_of(DraftModel(*draft, top_k=1, min_confidence=0.0))
    result = checked(engine, **ASK)
    assert result.stats.by_drafter["draft_model"].acceptance == 1.0
    assert result.stats.tokens_per_step > 5
    checked(engine, **{**ASK, "temperature": 1.0}, seed=3, images=picture())


def test_a_caption_stands_where_the_image_stood() -> None:
    model, processor = tiny()
    asked: list[Image.Image] = []

    def describe(image: Image.Image) -> str:
        asked.append(image)
        return f"[{image.size[0]} wide, no. {len(asked)}]"

    draft = DraftModel(text_only(model), processor.tokenizer, images="caption", caption=describe)
    engine = engine_of(draft)
    images = [picture(), picture(1), picture()]
    for _ in range(2):
        tokens, _ = read(engine, **ASK, images=images)
        text = processor.tokenizer.decode(tokens)
        assert "[64 wide, no. 1] [64 wide, no. 2] [64 wide, no. 1]What" in text
    assert len(asked) == 2, "an image was described twice"
    checked(engine, **ASK, images=images)
    told = DraftModel(text_only(model), processor.tokenizer, images="caption", caption="a page")
    assert "a page" in processor.tokenizer.decode(read(engine_of(told), **ASK, images=picture())[0])


@pytest.mark.parametrize("sees", [True, False])
def test_the_models_own_words_are_a_caption(sees: bool) -> None:
    model, processor = tiny()
    draft: tuple[Any, Any] = tiny() if sees else (text_only(model), processor.tokenizer)
    engine = engine_of(DraftModel(*draft, images="caption", top_k=1))
    plain = engine.generate(
        "Describe the image in one sentence.",
        images=picture(),
        max_new_tokens=48,
        temperature=0,
        speculate=False,
    )
    assert engine.inputs is not None
    prompt, own = engine.inputs.encode(ASK["prompt"], images=picture()), bound(engine).prompts
    assert own._captions is not None and own._captions.of(prompt) == [plain.text.strip()] != [""]
    text = processor.tokenizer.decode(own.read(prompt).prompt.token_ids)
    assert plain.text.strip() in text


def test_an_other_processors_model_looks_for_itself() -> None:
    """Another number of tokens an image: the draft model's own processor makes them."""
    model, processor = tiny()
    config = LlavaConfig(**copy.deepcopy(model.config.to_dict()))
    config.vision_config.image_size = 96
    config.image_seq_length = 64
    draft = LlavaForConditionalGeneration._from_config(config, dtype=torch.float64).eval()
    own = copy.deepcopy(processor)
    own.image_processor.size = {"height": 96, "width": 96}
    own.image_processor.crop_size = {"height": 96, "width": 96}
    assert not takes_same_inputs(config, model.config)
    engine = engine_of(DraftModel(draft, own, min_confidence=0.0))
    assert read(engine, **ASK, images=picture())[0].count(3) == 64
    checked(engine, **ASK, images=picture())


@pytest.mark.parametrize("images", ["give", "caption"])
def test_images_that_cannot_be_given_or_told_are_left_out_and_that_is_said_once(
    images: Any, caplog: pytest.LogCaptureFixture
) -> None:
    draft = DraftModel(model_of("smolvlm", "float64"), images=images, caption=width)
    engine = mmspec.load(model_of("llava", "float64"), config=FIXED, drafter=draft)
    inputs = prompt_inputs(FAMILIES["llava"], "image_middle")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            checked(engine, prompt=inputs, max_new_tokens=8)
    assert caplog.text.count("images are left out for the draft model") == 1


@pytest.mark.parametrize(
    ("family", "images"), [*zip(VISION, cycle(("thin", "omit")), strict=False)]
)
def test_no_policy_changes_a_token_on_any_family(family: str, images: Any) -> None:
    target = target_of(family)
    engine = Engine(target, None, [DraftModel(target, images=images)], controller="fixed")
    inputs = prompt_inputs(FAMILIES[family], "two_images", num_text_tokens=20)
    checked(engine, prompt=inputs, max_new_tokens=16, temperature=1.0, top_k=0, seed=2)


def test_ids_that_a_model_that_sees_does_not_know_are_none_to_it() -> None:
    """Of a target with tokens of its own: the draft model has no embedding for them."""
    draft = model_of("llava", "float64")
    drafter = DraftModel(draft, top_k=1, min_confidence=0.0)
    engine = Engine(Target(padded(draft, 120)), None, [drafter], controller="fixed")
    inputs = prompt_inputs(FAMILIES["llava"], "image_middle", num_text_tokens=20)
    inputs["input_ids"][0, [0, -1]] = 117
    result = checked(engine, prompt=inputs, max_new_tokens=12, temperature=0.0, ignore_eos=True)
    read = bound(engine).prompts.read(from_inputs(inputs, draft.config))
    assert read.prompt.media and 117 not in [*read.prompt.token_ids.tolist(), *read.text_ids]
    assert result.stats.by_drafter["draft_model"].proposed


def test_placeholders_are_given_as_they_are() -> None:
    """Some families' lie beyond the embedding."""
    texts = SharedTexts(SharedVocabulary(112, 90, frozenset({5}), stand_in=0), None)
    media = (MediaSpan("image", 1, 3),)
    prompt = Prompt(torch.tensor([5, 100, 101, 100, 7]), media=media)
    reader = PromptReader(texts, "give", takes_inputs=True, inputs=None, target_inputs=None,
                          captions=None, thin_keep=1.0)  # fmt: skip
    read = reader.read(prompt)
    assert read.prompt.token_ids.tolist() == [0, 100, 101, 0, 7] and read.text_ids == [0, 0, 7]


def test_what_the_targets_encoders_have_made_is_not_for_other_eyes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """transformers' generate hands it on in place of the pictures."""
    model = model_of("llava", "float64")
    engine = Engine(target_of("llava"), None, [DraftModel(model)], controller="fixed")
    ids = prompt_inputs(FAMILIES["llava"], "image_middle", num_text_tokens=20)["input_ids"]
    made = {"image": ModelOutput(pooler_output=torch.zeros(1, 4, 32))}
    (prompt,) = split_rows(ids, {"mm_encoder_outputs": made}, model.config)
    assert prompt.media and prompt.encoded
    read = bound(engine).prompts.read(prompt).prompt
    assert not read.encoded and not read.media and 0 < read.num_tokens < prompt.num_tokens
    assert "images are left out for the draft model" in caplog.text


@pytest.mark.parametrize("family", [f for f in VISION if FAMILIES[f].takes_video])
def test_a_video_is_given_too(family: str) -> None:
    target = target_of(family)
    drafter = DraftModel(target, top_k=1, min_confidence=0.0)
    engine = Engine(target, None, [drafter], controller="fixed")
    inputs = prompt_inputs(FAMILIES[family], "video", num_text_tokens=20)
    result = checked(engine, prompt=inputs, max_new_tokens=16, temperature=0.0)
    assert result.stats.by_drafter["draft_model"].acceptance == 1.0


def test_thinned_images_keep_all_text_and_an_even_share() -> None:
    media = (MediaSpan("image", 2, 10), MediaSpan("image", 11, 12))
    assert thinned(media, 14, share=0.25) == [0, 1, 4, 8, 10, 11, 12, 13]
    assert thinned(media, 14, share=1.0) == list(range(14))
    assert thinned((), 3, share=0.1) == [0, 1, 2]


def test_more_spans_than_images_are_told_at_the_first() -> None:
    spans = tuple(MediaSpan("image", n, n + 1) for n in range(3))
    prompt = Prompt(torch.arange(4), media=spans, images=(picture(),))
    assert Captions(lambda image: "a page").of(prompt) == ["a page", "", ""]
    assert not Captions(lambda image: "").can_tell(Prompt(torch.arange(4), media=spans))


def test_a_video_is_told_by_its_middle_frame() -> None:
    frames, image = tuple(Image.new("RGB", (n, 1)) for n in (1, 2, 3)), Image.new("RGB", (4, 1))
    media = (MediaSpan("video", 0, 1), MediaSpan("image", 1, 2))
    prompt = Prompt(torch.arange(2), media=media, images=(image,), videos=(frames,))
    assert Captions(width).of(prompt) == ["2", "4"]


def test_the_captions_that_were_asked_for_last_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(captions, "_REMEMBERED", 2)
    described = list[int]()
    remembered = Captions(lambda image: described.append(image.width) or width(image))
    for size in (1, 2, 1, 3, 1, 2):
        prompt = Prompt(
            torch.arange(1), media=(MediaSpan("image", 0, 1),), images=(Image.new("L", (size, 1)),)
        )
        assert remembered.of(prompt) == [str(size)]
    assert described == [1, 2, 3, 2]


def test_a_recording_is_told_in_no_pictures_words() -> None:
    sound, image = MediaSpan("audio", 0, 1), MediaSpan("image", 2, 3)
    assert Captions("a page").of(Prompt(torch.arange(4), media=(sound, image))) == ["", "a page"]
    heard, described = Prompt(torch.arange(4), media=(sound,)), Captions(lambda image: "a page")
    assert described.can_tell(heard), "no image is missing"
    assert described.of(heard) == [""]
