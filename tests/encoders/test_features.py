"""Vision features: run once for what was seen before, and the model is left as it was found."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from weakref import ReferenceType, ref

import pytest
import torch
from families import FAMILIES, Layout, prompt_inputs
from families.prompts import AUDIO_TOKEN
from matrix import model_of
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

import mmspec
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.encoders.company import Company
from mmspec.encoders.features import FeatureCache, FeatureSource
from mmspec.encoders.media import MediaItem, split_media
from mmspec.encoders.outputs import FeatureError, Features, split_output
from mmspec.errors import DecodeError, InputError
from mmspec.inputs import from_inputs
from mmspec.requests import Request
from mmspec.state import MediaSpan, Prompt
from mmspec.target import Target

VISION = [f.name for f in FAMILIES.values() if f.kind == "vision"]
EACH = [name for name in VISION if name != "llava_onevision"]  # image by image
GREEDY = {"temperature": 0.0, "max_new_tokens": 6}


def inputs_of(family: str, layout: Layout, seed: int = 0) -> dict[str, Tensor]:
    return prompt_inputs(FAMILIES[family], layout, num_text_tokens=24, seed=seed)


def engine_of(family: str, *, chunk: int | None = None, prefix_bytes: int = 0) -> mmspec.Engine:
    config = Config(
        decode=DecodeConfig(prefill_chunk=chunk, probe=False),
        cache=CacheConfig(prefix_bytes=prefix_bytes),
    )
    return mmspec.load(model_of(family, "float64"), config=config)


@contextmanager
def encoder_runs(engine: mmspec.Engine) -> Iterator[list[int]]:
    """The sizes of all that goes through the vision tower within."""
    model = engine.target.model
    names = ("vision_tower", "vision_model", "visual", "audio_tower")
    tower = next(
        module for name, module in model.named_modules() if name.rpartition(".")[2] in names
    )
    runs: list[int] = []
    hook = tower.register_forward_pre_hook(
        lambda _, args, kwargs: runs.append(
            next(v.shape[0] for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        ),
        with_kwargs=True,
    )
    try:
        yield runs
    finally:
        hook.remove()


def left_as_found(engine: mmspec.Engine) -> bool:
    names = ("get_image_features", "get_video_features", "get_audio_features")
    return not any(name in vars(m) for m in engine.target.model.modules() for name in names)


@pytest.mark.parametrize(
    ("family", "layout"), [*((name, "image_middle") for name in VISION), ("voxtral", "audio")]
)
def test_a_known_medium_is_not_encoded_again_and_changes_no_token(
    family: str, layout: Layout
) -> None:
    engine, inputs = engine_of(family), inputs_of(family, layout)
    other = {**inputs, "input_ids": inputs_of(family, layout, seed=3)["input_ids"]}
    expected = [engine.generate(i, reuse=False, **GREEDY) for i in (inputs, other)]
    with encoder_runs(engine) as runs:
        first, second = (engine.generate(i, **GREEDY) for i in (inputs, other))
        assert len(runs) == 1
        assert (first.stats.encoded_media > 0, first.stats.reused_media) == (True, 0)
        assert (second.stats.encoded_media, second.stats.reused_media > 0) == (0, True)
        engine.generate(inputs, reuse=False, **GREEDY)
        assert len(runs) == 2, "reuse=False takes nothing from the cache"
        engine.generate(inputs, namespace="another", **GREEDY)
        assert len(runs) == 3, "one namespace finds nothing of another's"
        changed = {n: -v if v.is_floating_point() else v for n, v in inputs.items()}
        engine.generate(changed, **GREEDY)
        assert len(runs) == 4, "other pixels are another image"
    assert [first.tokens, second.tokens] == [result.tokens for result in expected]
    assert left_as_found(engine)


@pytest.mark.parametrize("family", ["llava", "mllama"])
def test_what_an_encoder_made_nan_of_is_found_by_no_later_request(family: str) -> None:
    engine, inputs = engine_of(family), inputs_of(family, "image_middle")
    plain = engine.generate(inputs, reuse=False, **GREEDY).tokens
    projector = engine.target.model.get_submodule("model.multi_modal_projector")
    hook = projector.register_forward_hook(lambda _, given, out: out.fill_(torch.nan))
    with pytest.raises(DecodeError, match="NaN"):
        engine.generate(inputs, **GREEDY)
    hook.remove()
    assert engine.generate(inputs, **GREEDY).tokens == plain


@pytest.mark.parametrize("family", EACH)
def test_of_two_images_only_the_new_one_is_encoded(family: str) -> None:
    engine, both = engine_of(family), inputs_of(family, "two_images")
    media = split_media(from_inputs(both, engine.target.model.config))
    assert media is not None
    second = media.items["image"][1]
    expected = engine.generate(both, reuse=False, **GREEDY)
    cache = engine._prefill.features
    assert cache is not None
    with encoder_runs(engine) as runs:
        engine.generate(both, **GREEDY)
        known = {
            key: features for key, features in cache._entries.items() if key[2] != second.digest
        }
        cache.clear()
        for key, features in known.items():
            cache.put(*key, features)
        runs.clear()
        result = engine.generate(both, **GREEDY)
    assert len(runs) == 1
    assert (result.stats.encoded_media, result.stats.reused_media) == (1, 1)
    assert result.tokens == expected.tokens


@pytest.mark.parametrize("family", ["llava_next", "gemma3"])
def test_images_side_by_side_are_each_their_own_to_later_prompts(family: str) -> None:
    """LLaVA-NeXT's two are of 52 and 56 tokens: not of 54 each. Gemma 3's see each other there."""
    both, model = inputs_of(family, "two_images"), model_of(family, "float64")
    ids, token = both["input_ids"][0], model.config.image_token_id
    each = {n: v for n, v in both.items() if n in ("pixel_values", "image_sizes")}
    spans = from_inputs(both, model.config).media
    text = ids[: spans[0].start]

    def prompt(*images: int) -> dict[str, Tensor]:
        tokens = sum(spans[index].stop - spans[index].start for index in images)
        joined = torch.cat([text, torch.full((tokens,), token), text]).unsqueeze(0)
        made = {name: value[list(images)] for name, value in each.items()}
        if "token_type_ids" in both:
            made["token_type_ids"] = (joined == token).long()
        return {"input_ids": joined, **made}

    engine = engine_of(family, prefix_bytes=2**24)
    for images in ((1, 0), (0, 1), (0,), (1,)):
        found, alone = (
            one.generate(prompt(*images), **GREEDY, output_logits=True)
            for one in (engine, engine_of(family))
        )
        torch.testing.assert_close(found.logits, alone.logits)


@pytest.mark.parametrize("family", VISION)
def test_an_image_cut_by_chunks_is_encoded_once(family: str) -> None:
    engine, inputs = engine_of(family, chunk=3), inputs_of(family, "two_images")
    expected = engine_of(family).generate(inputs, reuse=False, **GREEDY)
    for reuse in (True, False):
        with encoder_runs(engine) as runs:
            result = engine.generate(inputs, reuse=reuse, **GREEDY)
        assert len(runs) <= 2 + reuse, "each image once at most; and first both together"
        assert result.tokens == expected.tokens
        assert result.stats.encoded_media == 2 - (family == "llava_onevision")


def test_a_recording_cut_by_chunks_is_encoded_once() -> None:
    engine, inputs = engine_of("voxtral", chunk=3), inputs_of("voxtral", "two_audio")
    expected = engine_of("voxtral").generate(inputs, reuse=False, **GREEDY)
    with encoder_runs(engine) as runs:
        results = [engine.generate(inputs, **GREEDY) for _ in range(2)]
    assert runs == [2, 1, 1, 1], "three chunks of mel features, each once; and first two together"
    assert [result.tokens for result in results] == [expected.tokens] * 2
    assert [result.stats.reused_media for result in results] == [0, 3]


def test_a_model_that_encodes_within_its_forward_is_cut_between_recordings() -> None:
    """Qwen2-Audio has no method for features: each chunk has its recordings whole."""
    engine, inputs = engine_of("qwen2_audio", chunk=3), inputs_of("qwen2_audio", "two_audio")
    expected = engine_of("qwen2_audio").generate(inputs, reuse=False, **GREEDY)
    with encoder_runs(engine) as runs:
        result = engine.generate(inputs, **GREEDY)
    assert runs == [1, 1]
    assert result.tokens == expected.tokens
    assert (result.stats.encoded_media, result.stats.reused_media) == (2, 0)
    assert engine.target.cuts.media_because is None


@pytest.mark.parametrize("family", ["qwen3_vl", "llava_next"])
def test_the_model_is_left_as_it_was_found_after_an_error(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, inputs = engine_of(family, chunk=8), inputs_of(family, "image_middle")
    expected = engine.generate(inputs, reuse=False, **GREEDY).tokens

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        tower = engine.target.model.model
        tower = tower.visual if family == "qwen3_vl" else tower.vision_tower
        patch.setattr(tower, "forward", broken)
        with pytest.raises(mmspec.MmspecError, match="out of memory"):
            engine.generate(inputs, **GREEDY)
    assert left_as_found(engine)
    assert engine.generate(inputs, **GREEDY).tokens == expected


@pytest.mark.parametrize("layout", ["image_middle", "two_images"])
def test_an_encoder_of_another_form_is_run_whole_and_said_once(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Features whose rows are not the placeholders' cannot be cut: the prompt goes in one go, also
    where one image comes twice, and would be encoded once."""
    engine, inputs = engine_of("llava", chunk=8), inputs_of("llava", layout)
    inputs["pixel_values"] = inputs["pixel_values"][:1].expand_as(inputs["pixel_values"])
    expected = engine_of("llava").generate(inputs, reuse=False, **GREEDY).tokens
    inner = engine.target.model.model
    own = type(inner).get_image_features

    def twofold(self: object, *args: object, **kwargs: object) -> object:
        output = own(self, *args, **kwargs)
        rows = torch.cat(list(output.pooler_output))
        output.pooler_output = [rows.repeat(1, 2).view(2 * len(rows), -1)]
        return output

    def halved(self: object, ids: object, inputs_embeds: Tensor, image_features: Tensor) -> Tensor:
        return (ids == self.config.image_token_id).unsqueeze(-1)  # type: ignore[attr-defined]

    def scatter(self: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        return masked_scatter(self, mask, rows.view(-1, 2, rows.shape[-1])[:, 0])

    masked_scatter = Tensor.masked_scatter
    monkeypatch.setattr(type(inner), "get_image_features", twofold)
    monkeypatch.setattr(type(inner), "get_placeholder_mask", halved)
    monkeypatch.setattr(Tensor, "masked_scatter", scatter)
    results = [engine.generate(inputs, **GREEDY) for _ in range(2)]
    assert [result.tokens for result in results] == [expected] * 2
    assert sum("in one go from now on" in record.message for record in caplog.records) == 1


def mixing(rows: list[Tensor]) -> list[Tensor]:
    mean = torch.cat(rows).mean(dim=0)
    return [each + mean for each in rows]


def following(rows: list[Tensor]) -> list[Tensor]:
    return [each + sum(rows[:index]) for index, each in enumerate(rows)]  # type: ignore[misc]


def refusing(rows: list[Tensor]) -> list[Tensor]:
    if len(rows) == 1:
        raise ValueError("one image alone")
    return rows


@pytest.mark.parametrize("mix", [mixing, following, refusing])
@pytest.mark.parametrize("chunk", [None, 8])
def test_images_whose_features_depend_on_each_other_are_encoded_together(
    mix: Callable[[list[Tensor]], list[Tensor]],
    chunk: int | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, both = model_of("llava", "float64"), inputs_of("llava", "two_images")
    pixels, ids = both["pixel_values"], both["input_ids"]
    spans = from_inputs(both, model.config).media
    alone = ids[:, : spans[1].start]
    own = type(model.model).get_image_features

    def mixed(self: object, *args: object, **kwargs: object) -> object:
        output = own(self, *args, **kwargs)
        output.pooler_output = mix(list(output.pooler_output))
        return output

    monkeypatch.setattr(type(model.model), "get_image_features", mixed)
    engine = engine_of("llava", chunk=chunk, prefix_bytes=2**24)
    prompts = [(ids, pixels), (ids, pixels.flip(0)), (ids, pixels[[0, 0]]), (ids, pixels)]
    if mix is not refusing:
        prompts = [(alone, pixels[1:]), (alone, pixels[:1]), *prompts, (alone, pixels[:1])]
    for tokens, images in prompts:
        inputs = {"input_ids": tokens, "pixel_values": images}
        with torch.no_grad():
            expected = model(**inputs).logits[0, -1:].float()
        found = engine.generate(inputs, temperature=0.0, max_new_tokens=1, output_logits=True)
        torch.testing.assert_close(found.logits, expected)
    assert (found.stats.encoded_media, found.stats.reused_media) == (0, 1), "as one item"
    assert sum("encoded together" in record.message for record in caplog.records) == 1
    assert engine.target.cuts.media_because is None, "prompts are cut as before"


def test_a_prompt_that_is_read_again_keeps_nothing_of_the_first_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, inner = engine_of("llava"), model_of("llava", "float64").model
    own, first = type(inner).get_image_features, list[ReferenceType[Tensor]]()

    def mixed(self: object, *args: object, **kwargs: object) -> object:
        output = own(self, *args, **kwargs)
        output.pooler_output = mixing(list(output.pooler_output))
        return output

    def embedded(_: object, given: object, states: Tensor) -> None:
        if first and engine.target.found.company.together:
            assert first[0]() is None, "as large as the prompt"
        first.append(ref(states))

    monkeypatch.setattr(type(inner), "get_image_features", mixed)
    hook = inner.get_input_embeddings().register_forward_hook(embedded)
    try:
        engine.generate(inputs_of("llava", "two_images"), temperature=0.0, max_new_tokens=1)
    finally:
        hook.remove()
    assert len(first) == 2


def test_a_recording_that_the_model_itself_would_make_room_for_is_refused() -> None:
    """Old prompts of Qwen2-Audio have one placeholder, of which the forward makes many."""
    engine, inputs = engine_of("qwen2_audio"), inputs_of("qwen2_audio", "audio")
    ids = inputs["input_ids"][0]
    again = torch.nn.functional.pad((ids[1:] == AUDIO_TOKEN) & (ids[:-1] == AUDIO_TOKEN), (1, 0))
    old = {**inputs, "input_ids": ids[~again][None]}
    del old["attention_mask"]
    with pytest.raises(InputError, match=rf"made {len(ids)} positions of {int((~again).sum())}"):
        engine.generate(old, **GREEDY)


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_that_takes_a_placeholder_alone_for_text_is_run_whole(fails: bool) -> None:
    """As Aria's forward: what is one token long has no pixels. So is what a known prompt that ends
    in an image leaves to compute. Transformers' 5.17 of it has no name for them then."""
    engine, inputs = engine_of("llava", prefix_bytes=2**24), inputs_of("llava", "image_last")
    expected = engine.generate(inputs, reuse=False, **GREEDY).tokens

    def blind(_: object, args: object, told: dict[str, Tensor]) -> object:
        is_alone = told["input_ids"].shape[1] == 1
        if fails and is_alone and "pixel_values" in told:
            raise UnboundLocalError
        return args, {n: v for n, v in told.items() if not is_alone or n != "pixel_values"}

    hook = engine.target.model.register_forward_pre_hook(blind, with_kwargs=True)
    results = [engine.generate(inputs, **GREEDY) for _ in range(2)]
    hook.remove()
    assert [result.tokens for result in results] == [expected] * 2
    assert left_as_found(engine)


def test_a_video_that_the_images_method_encodes_is_not_taken_for_the_image() -> None:
    """As in Perception LM, whose videos may fill as many placeholders as its images."""

    class Model(torch.nn.Module):
        def get_image_features(self, pixels: Tensor) -> BaseModelOutputWithPooling:
            return BaseModelOutputWithPooling(pooler_output=pixels)

    model, image, video = Model(), torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    spans = (MediaSpan("image", 1, 5), MediaSpan("video", 6, 10))
    pixels = {"pixel_values": image, "pixel_values_videos": video}
    media = split_media(Prompt(torch.zeros(12, dtype=torch.long), pixels, spans))
    assert media is not None
    source = FeatureSource(media)
    with source.attached(model, media.placeholders(0, 12)):
        found = [model.get_image_features(one).pooler_output for one in (image, video)]
    assert torch.equal(torch.cat(found), torch.cat([image, video]))
    with (
        pytest.raises(FeatureError, match="no method"),
        source.attached(model, media.placeholders(0, 8)),
    ):
        pytest.fail("a forward of a part of the video, which it would take for text")


class Watcher(torch.nn.Module):
    """Reads a video's frames as images, as Qwen3-VL, and draws noise for what it hears."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[int] = []

    def get_image_features(
        self, pixel_values: Tensor, shift: Tensor, *, times: float
    ) -> BaseModelOutputWithPooling:
        self.runs.append(len(pixel_values))
        return BaseModelOutputWithPooling(pooler_output=list(pixel_values * times + shift))

    def get_video_features(
        self, pixel_values_videos: Tensor, shift: Tensor, *, times: float
    ) -> BaseModelOutputWithPooling:
        return self.get_image_features(pixel_values_videos, shift, times=times)

    def get_audio_features(self, input_values: Tensor, *, sample: bool) -> ModelOutput:
        self.runs.append(len(input_values))
        noise = torch.randn(1) if sample else 0.0
        return BaseModelOutputWithPooling(pooler_output=input_values + noise)


def test_methods_that_call_each_other_are_told_what_the_model_tells_them() -> None:
    model, company, cache = Watcher(), Company(), FeatureCache(2**20)
    own = model.get_audio_features = model.get_audio_features  # type: ignore[method-assign]
    pixels, video, audio = torch.randn(4, 4, 8), torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    places = (("image", 1), ("image", 6), ("video", 11), ("audio", 16))
    spans = tuple(MediaSpan(kind, start, start + 4) for kind, start in places)
    cases: list[tuple[list[int], list[int], int]] = [  # images, what is run, what is counted
        ([0, 1], [2, 1, 1, 1, 1], 4),
        ([0, 2], [1], 1),
        ([1, 1], [2, 1, 1], 0),
        ([3, 3], [1], 1),
        ([0, 1], [], 0),
    ]
    for images, runs, encoded in cases:
        inputs = {
            "pixel_values": pixels[images],
            "pixel_values_videos": video,
            "input_values": audio,
        }
        media = split_media(Prompt(torch.zeros(21, dtype=torch.long), inputs, spans))
        assert media is not None
        source = FeatureSource(media, cache, company=company)
        with source.attached(model, media.placeholders(0, 21)):
            told = {"shift": torch.ones(8), "times": 3.0}
            made = [
                model.get_image_features(pixels[images].double(), **told),
                model.get_video_features(video, **told),
                model.get_audio_features(audio, sample=True),
            ]
        source.share()
        seen, watched, heard = (one.pooler_output for one in made)
        assert torch.equal(torch.cat(seen), pixels[images].double().flatten(0, 1) * 3.0 + 1.0)
        assert torch.equal(torch.cat(watched), video[0] * 3.0 + 1.0)
        assert torch.equal(heard, audio)
        assert (model.runs, source.num_encoded) == (runs, encoded)
        model.runs.clear()
    assert vars(model)["get_audio_features"] == own


def test_the_cache_is_bounded_and_the_longest_unused_go_first() -> None:
    rows = torch.zeros(4, 8)
    features = Features((rows,), None)  # type: ignore[arg-type]
    cache = FeatureCache(3 * rows.nbytes)
    for name in (b"a", b"b", b"c"):
        cache.put("", 0, name, features)
    assert cache.get("", 0, b"a") is features
    cache.put("", 0, b"d", features)
    kept = [name for name in (b"a", b"b", b"c", b"d") if cache.get("", 0, name)]
    assert kept == [b"a", b"c", b"d"]
    assert (cache.info.num_entries, cache.info.num_bytes) == (3, 3 * rows.nbytes)
    cache.put("", 0, b"huge", replace(features, rows=(torch.zeros(400, 8),)))
    cache.put("", 0, b"a", features)
    assert cache.info.num_bytes == 3 * rows.nbytes
    cache.put("other", 0, b"a", features)
    cache.clear("other")
    assert cache.info.num_entries == 2


def test_a_source_keeps_what_it_saw_without_a_cache() -> None:
    prompt = from_inputs(inputs_of("llava", "image_first"), model_of("llava", "float64").config)
    media = split_media(prompt)
    assert media is not None
    source, target = FeatureSource(media), Target(model_of("llava", "float64"))
    cache = target.new_cache()
    row = cache.open(64)
    for start, stop in ((0, 5), (5, 9), (9, prompt.num_tokens)):
        target.prefill(prompt, cache, row, start=start, stop=stop, features=source)
    assert source.num_encoded == 1
    assert Request(prompt).reuse


def test_padding_among_features_is_left_out_and_the_model_is_told_so() -> None:
    """As of Gemma 4's recordings: it keeps what a mask beside the features says."""

    @dataclass
    class Heard(ModelOutput):
        pooler_output: Tensor | None = None
        attention_mask: Tensor | None = None

    rows = torch.randn(2, 4, 8)
    mask = torch.arange(4) < torch.tensor([[4], [2]])
    output = Heard(pooler_output=rows, attention_mask=mask)
    items = [MediaItem("audio", 0, 4, {}), MediaItem("audio", 4, 6, {})]
    for features, expected in zip(split_output(output, items), (rows[0], rows[1, :2]), strict=True):
        built = features.form.build(features.rows)
        assert isinstance(built, Heard)
        assert torch.equal(built.pooler_output[built.attention_mask], expected)


def test_features_beside_a_mask_of_another_name_are_the_models_own() -> None:
    """Gemma 3n's recordings: the model puts an embedding of its own where this mask says so, and
    fills what is missing to a fixed number of tokens."""

    @dataclass
    class Heard(ModelOutput):
        pooler_output: Tensor | None = None
        audio_mel_mask: Tensor | None = None

    output = Heard(torch.randn(1, 4, 8), torch.zeros(1, 4, dtype=torch.bool))
    with pytest.raises(FeatureError, match="padding"):
        split_output(output, [MediaItem("audio", 0, 4, {})])


def test_an_output_whose_class_cannot_be_empty_is_made_again() -> None:
    """As timm's is: what comes before pooling must be given."""

    @dataclass
    class Pooled(ModelOutput):
        last_hidden_state: Tensor
        pooler_output: Tensor | None = None

    rows = torch.randn(1, 4, 8)
    output = Pooled(last_hidden_state=torch.zeros(1, 8, 2, 2), pooler_output=rows)
    (features,) = split_output(output, [MediaItem("image", 0, 4, {})])
    built = features.form.build(features.rows)
    assert isinstance(built, Pooled)
    assert torch.equal(built.pooler_output, rows)
