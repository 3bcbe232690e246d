"""`model.generate(custom_generate=mmspec.custom_generate)`: the same object and the same text."""

import gc
import inspect
import weakref
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from draft_models import letters
from families import EOS_TOKEN, FAMILIES, Layout, layouts_of, prompt_inputs
from families.audio import NUM_MELS
from matrix import model_of
from PIL import Image
from stores import write_store
from torch import Tensor, nn
from transformers import (
    LogitsProcessor,
    PreTrainedModel,
    StaticCache,
    StoppingCriteria,
    StopStringCriteria,
    TextIteratorStreamer,
)
from transformers.generation.streamers import BaseStreamer

import mmspec
import mmspec.integrations.known_models as known_models
import mmspec.target.probe as probing
from mmspec.config import Config
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.drafters.retrieval import Retrieval
from mmspec.errors import ConfigError, InputError, ModelError
from mmspec.inputs.rows import split_rows
from mmspec.sweep.build import build
from mmspec.sweep.media import media_inputs
from mmspec.sweep.names import architectures
from mmspec.target import Target
from mmspec.training.tiny.build import build_model, build_processor

PAD = 0
OURS: dict[str, Any] = {"custom_generate": mmspec.custom_generate, "controller": "fixed"}
GREEDY: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False}
SAMPLED: dict[str, Any] = {
    "max_new_tokens": 12,
    "do_sample": True,
    "temperature": 0.8,
    "top_k": 30,
    "repetition_penalty": 1.2,
}


def eager() -> PromptLookup:
    """Drafts wherever anything repeats: random text seldom repeats itself at length."""
    return PromptLookup(min_match=1, min_confidence=0.0, max_depth=6)


def inputs(
    family: str = "llama", layout: str = "text", *, tokens: int = 24, seed: int = 0
) -> dict[str, Tensor]:
    made = prompt_inputs(
        FAMILIES[family],
        layout,  # type: ignore[arg-type]
        num_text_tokens=tokens,
        seed=seed,
    )
    return {k: v.double() if v.is_floating_point() else v for k, v in made.items()}


def cases() -> Iterator[tuple[str, Layout]]:
    for family in FAMILIES.values():
        for layout in layouts_of(family):
            yield family.name, layout


# One prompt


@pytest.mark.parametrize(("family", "layout"), list(cases()))
def test_greedy_text_is_that_of_transformers(family: str, layout: str) -> None:
    model, prompt = model_of(family, "float64"), inputs(family, layout)
    expected = model.generate(**prompt, **GREEDY)
    torch.testing.assert_close(
        model.generate(**prompt, **GREEDY, **OURS, drafter=eager()), expected
    )


def test_drafts_are_accepted_here() -> None:
    """Without this, all of the above could pass without a single draft."""
    model, forwards = model_of("llama", "float64"), 0

    def count(*_: object) -> None:
        nonlocal forwards
        forwards += 1

    prompt = {"input_ids": torch.tensor([[5, 6, 7, 8] * 8])}
    model.generate(**prompt, **OURS, max_new_tokens=1, drafter="none")  # the model is probed
    handle = model.register_forward_pre_hook(count)
    options = {"max_new_tokens": 24, "sequence_bias": [[[t], 50.0] for t in (5, 6)]}
    model.generate(**prompt, **OURS, **options, drafter=eager())
    plain_forwards, forwards = forwards, 0
    model.generate(**prompt, **OURS, **options, drafter="none")
    handle.remove()
    assert plain_forwards < forwards == 24


@pytest.mark.parametrize("family", ["llama", "qwen2_vl"])
def test_sampled_text_is_that_of_our_plain_decoding(family: str) -> None:
    model = model_of(family, "float64")
    prompt = inputs(family, "text" if family == "llama" else "image_middle")
    text = model.generate(**prompt, **SAMPLED, **OURS, seed=9, drafter=eager())
    options = {name: value for name, value in SAMPLED.items() if name != "do_sample"}
    result = mmspec.load(model).generate(prompt, seed=9, speculate=False, **options)
    assert text[0, prompt["input_ids"].shape[1] :].tolist() == list(result.tokens)


def test_without_a_seed_torch_manual_seed_holds() -> None:
    def text(seed: int) -> list[int]:
        torch.manual_seed(seed)
        made = model_of("llama", "float64").generate(**inputs(), **SAMPLED, **OURS)
        return made[0].tolist()

    assert text(1) == text(1) != text(2)


def test_greedy_draws_nothing_from_torchs_generator() -> None:
    state = torch.random.get_rng_state()
    model_of("llama", "float64").generate(**inputs(), **GREEDY, **OURS)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "drafter",
    ["prompt_lookup", "none", None, [eager()], eager()],
    ids=["named", "none", "default", "several", "one"],
)
def test_drafters_are_named_or_brought(drafter: Any) -> None:
    model = model_of("llama", "float64")
    expected = model.generate(**inputs(), **GREEDY)
    assert torch.equal(model.generate(**inputs(), **GREEDY, **OURS, drafter=drafter), expected)


# The output object


@pytest.mark.parametrize("sampling", [GREEDY, GREEDY | {"repetition_penalty": 1.3}], ids=str)
def test_the_output_object_is_that_of_transformers(sampling: dict[str, Any]) -> None:
    model = model_of("llama", "float64")
    wanted = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    expected = model.generate(**inputs(), **sampling, **wanted)
    output = model.generate(**inputs(), **sampling, **wanted, **OURS, drafter=eager())
    assert type(output) is type(expected)
    assert torch.equal(output.sequences, expected.sequences)
    for name in ("scores", "logits"):
        mine, theirs = getattr(output, name), getattr(expected, name)
        assert isinstance(mine, tuple) and mine[0].dtype == theirs[0].dtype
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    assert output.past_key_values is None
    ours = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    theirs = model.compute_transition_scores(
        expected.sequences, expected.scores, normalize_logits=True
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_scores_are_kept_only_where_asked_for() -> None:
    model = model_of("llama", "float64")
    output = model.generate(**inputs(), **GREEDY, **OURS, return_dict_in_generate=True)
    assert output.scores is None and output.logits is None
    assert isinstance(model.generate(**inputs(), **GREEDY, **OURS, output_scores=True), Tensor)


class Collects(BaseStreamer):
    def __init__(self) -> None:
        self.put_values: list[list[int]] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        assert not self.ended
        self.put_values.append(value.tolist())

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("rows", [1, 3])
def test_a_streamer_gets_what_transformers_gives_it(rows: int) -> None:
    model, theirs, ours = model_of("llama", "float64"), Collects(), Collects()
    prompt = {k: v.repeat(rows, 1) for k, v in inputs().items()}
    prompt["input_ids"][:, 3] += torch.arange(rows)
    plain = model.generate(**prompt, **GREEDY)
    end = int(plain[rows - 1, -6])  # one row ends early
    options = GREEDY | {"eos_token_id": end}
    model.generate(**prompt, **options, streamer=theirs)
    model.generate(**prompt, **options, streamer=ours, **OURS, drafter=eager())
    assert ours.put_values == theirs.put_values
    assert len(ours.put_values) >= 5 and ours.ended == 1


def test_transformers_own_streamers_work() -> None:
    processor = build_processor()
    model = build_model("tiny").double().eval()
    prompt = processor(text="red square, blue circle", return_tensors="pt")
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True)
    text = model.generate(**prompt, **GREEDY, **OURS, streamer=streamer)
    new = text[0, prompt["input_ids"].shape[1] :]
    assert "".join(streamer) == processor.tokenizer.decode(new)


# Batches


def batch_of(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """As a processor pads them, on the left; images are (images, ...) or (batch, images, ...)."""
    longest = max(row["input_ids"].shape[1] for row in rows)
    batch: dict[str, list[Tensor]] = {}
    beside = ("aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask")  # Mllama's
    by_row = any(row.keys() & {"pixel_attention_mask", *beside} for row in rows)
    most = max((row["pixel_values"].shape[1] for row in rows if "pixel_values" in row), default=0)
    for row in rows:
        padding = longest - row["input_ids"].shape[1]
        values = dict(row)
        if by_row and "pixel_values" not in row:
            some = next(other for other in rows if "pixel_values" in other)
            for name in ("pixel_values", "pixel_attention_mask", *beside[:2]):
                if name in some:
                    values[name] = torch.zeros_like(some[name])
            if beside[2] in some:
                values[beside[2]] = torch.zeros(1, row["input_ids"].shape[1], most, 4).long()
        for name, value in values.items():
            if value.shape == row["input_ids"].shape:
                value = torch.nn.functional.pad(value, (padding, 0), value=PAD)
            elif name == beside[2]:
                missing = most - value.shape[2]
                value = torch.nn.functional.pad(value, (0, 0, 0, missing, padding, 0))
            elif by_row:
                missing = most - value.shape[1]
                value = torch.cat([value, value.new_zeros(1, missing, *value.shape[2:])], dim=1)
            batch.setdefault(name, []).append(value)
        if any("batch_num_images" in other for other in rows) and "batch_num_images" not in row:
            batch.setdefault("batch_num_images", []).append(torch.tensor([0]))
    return {name: torch.cat(values) for name, values in batch.items()}


MIXES = [("text", "image_middle"), ("image_first", "image_last", "text")]


@pytest.mark.parametrize("family", [f.name for f in FAMILIES.values() if f.kind == "text"])
def test_padded_rows_are_what_each_is_alone(family: str) -> None:
    rows = [inputs(family, tokens=n, seed=n) for n in (24, 9, 17)]
    check_rows(family, rows)


VISION = [f.name for f in FAMILIES.values() if f.kind == "vision"]


@pytest.mark.parametrize(("family", "layouts"), [*zip(VISION, cycle(MIXES), strict=False)])
def test_images_of_a_batch_go_to_their_rows(family: str, layouts: Sequence[str]) -> None:
    rows = [inputs(family, layout, tokens=12 + 5 * i, seed=i) for i, layout in enumerate(layouts)]
    check_rows(family, rows)


def test_images_that_pad_a_row_are_left_out() -> None:
    layouts = ("two_images", "image_middle")
    rows = [inputs("mllama", layout, tokens=14 + i, seed=i) for i, layout in enumerate(layouts)]
    assert batch_of(rows)["aspect_ratio_ids"].tolist()[1][1] == 0
    check_rows("mllama", rows)


@pytest.mark.parametrize("layouts", [("audio", "text", "two_audio"), ("two_audio", "audio")])
@pytest.mark.parametrize("family", [f.name for f in FAMILIES.values() if f.kind == "audio"])
def test_recordings_of_a_batch_go_to_their_rows(family: str, layouts: Sequence[str]) -> None:
    rows = [inputs(family, layout, tokens=12 + 5 * i, seed=i) for i, layout in enumerate(layouts)]
    check_rows(family, rows)


@pytest.mark.parametrize(
    ("family", "counts"), [("glmasr", (12, 6)), ("moss_transcribe_diarize", (13, 7))]
)
def test_chunks_of_recordings_go_to_the_rows_that_have_their_tokens(
    family: str, counts: tuple[int, int]
) -> None:
    """Of different lengths, in one run of placeholders; how many tokens each has nothing tells but
    the encoder. MOSS has a mask of each recording, too."""
    if not any(one.model_type == family for one in architectures()):
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    model, frames = build(*architectures([family]), torch.float64), torch.tensor([64, 37, 52])
    mels = torch.randn(3, NUM_MELS, 64, generator=torch.Generator().manual_seed(0)).double()
    mask = (torch.arange(64) < frames[:, None]).long()
    heard, (first, last) = [model.config.audio_token_id], counts
    rows = [
        {"input_ids": torch.tensor([tokens]), **dict(zip(NAMES, media, strict=False))}
        for tokens, media in (
            ([5, 6, *heard * first, 7, 9], (mels[:2], mask[:2], mask[:1])),
            ([8, 5, 6], ()),
            ([7, *heard * last, 8], (mels[2:], mask[2:], mask[:1])),
        )
    ]
    for row in rows if family == "glmasr" else ():
        row.pop("padding_mask", None)
    batch, most = batch_of(rows), first + 4
    batch["attention_mask"] = (batch["input_ids"] != PAD).long()
    expected = model.generate(**batch, **GREEDY)
    assert torch.equal(model.generate(**batch, **GREEDY, **OURS, drafter=eager()), expected)
    texts = model.generate(**batch, **SAMPLED, **OURS, num_return_sequences=2, seed=4)
    for number, row in enumerate(rows):
        text = model.generate(**row, **SAMPLED, **OURS, seed=4 + number)
        assert texts[2 * number, most:].tolist() == text[0, row["input_ids"].shape[1] :].tolist()


NAMES = ("input_features", "input_features_mask", "padding_mask")


def test_what_is_heard_is_the_same_at_each_call() -> None:
    """VibeVoice adds noise to recordings, another one each time, unless it is told not to."""
    if not any(one.model_type == "vibevoice_asr" for one in architectures()):
        pytest.skip(f"transformers {transformers.__version__} has no vibevoice_asr")
    model = build(*architectures(["vibevoice_asr"]), torch.float64)
    if "sample" not in inspect.signature(model.forward).parameters:  # 5.17: nothing tells it
        with pytest.raises(ModelError, match="adds noise to what it hears"):
            mmspec.load(model)
        return
    heard = model.config.audio_token_id
    batch = {"input_ids": torch.tensor([[5, heard, heard, heard, 6], [PAD, 7, heard, 8, 9]])}
    batch["attention_mask"] = (batch["input_ids"] != PAD).long()
    hop = model.config.acoustic_tokenizer_encoder_config.hop_length
    batch["padding_mask"] = torch.arange(3 * hop) < torch.tensor([[3 * hop], [hop]])
    batch["input_values"] = torch.randn(2, 1, 3 * hop, generator=torch.Generator().manual_seed(0))
    batch["input_values"] = batch["input_values"].double() * batch["padding_mask"][:, None]
    before = torch.get_rng_state()
    expected = model.generate(**batch, **GREEDY, sample=False)
    for told in ({}, {"sample": False}):
        found = model.generate(**batch, **GREEDY, **OURS, drafter=eager(), **told)
        assert torch.equal(found, expected)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "family", ["qwen2_vl", "qwen3_vl", "internvl", "smolvlm", "gemma3", "llava_next"]
)
def test_several_images_in_one_row_of_a_batch(family: str) -> None:
    layouts = ("image_last", "two_images")
    rows = [inputs(family, layout, tokens=15 + 5 * i, seed=i) for i, layout in enumerate(layouts)]
    check_rows(family, rows)


def check_rows(family: str, rows: Sequence[dict[str, Tensor]]) -> None:
    model, batch = model_of(family, "float64"), batch_of(rows)
    together = model.generate(**batch, **GREEDY, **OURS, drafter=eager())
    longest = batch["input_ids"].shape[1]
    assert torch.equal(together[:, :longest], batch["input_ids"])
    for text, row in zip(together, rows, strict=True):
        alone = model.generate(**row, **GREEDY)
        assert text[longest:].tolist() == alone[0, row["input_ids"].shape[1] :].tolist()


def test_a_padded_batch_is_that_of_transformers() -> None:
    model = model_of("llama", "float64")
    batch = batch_of([inputs(tokens=n, seed=n) for n in (24, 9, 17)])
    free = model.generate(**batch, **GREEDY)
    options = GREEDY | {"eos_token_id": [int(free[1, -7]), EOS_TOKEN], "min_new_tokens": 2}
    expected = model.generate(**batch, **options)
    assert expected[1, -1] == PAD != expected[0, -1]
    assert torch.equal(model.generate(**batch, **options, **OURS, drafter=eager()), expected)


def test_min_length_and_max_length_count_the_padding_as_transformers_does() -> None:
    model = model_of("llama", "float64")
    batch = batch_of([inputs(tokens=n, seed=n) for n in (24, 9)])
    free = model.generate(**batch, **GREEDY)
    options = {
        "do_sample": False,
        "eos_token_id": [int(t) for t in free[:, -9]],
        "max_length": 31,
        "min_length": 28,
    }
    expected = model.generate(**batch, **options)
    assert torch.equal(model.generate(**batch, **options, **OURS), expected)


@pytest.mark.parametrize("family", ["llama", "llava", "qwen2_5_vl"])
def test_several_sequences_a_prompt_are_our_samples(family: str) -> None:
    layout = "text" if family == "llama" else "image_middle"
    rows = [inputs(family, layout, tokens=20), inputs(family, layout, tokens=13, seed=1)]
    model, batch = model_of(family, "float64"), batch_of(rows)
    texts = model.generate(
        **batch, **SAMPLED, **OURS, num_return_sequences=3, seed=4, drafter=eager()
    )
    assert texts.shape[0] == 6
    options = {name: value for name, value in SAMPLED.items() if name != "do_sample"}
    for number, row in enumerate(rows):
        result = mmspec.load(model).generate(row, n=3, seed=4 + number, **options)
        for sample, text in zip(result.samples, texts[3 * number :], strict=False):
            assert text[batch["input_ids"].shape[1] :].tolist() == list(sample.tokens)


@pytest.mark.parametrize("family", ["llama", "qwen2_vl"])  # one plane of positions, and several
def test_what_sequences_have_in_common_is_read_once(family: str) -> None:
    model, read = model_of(family, "float64"), list[int]()
    prompt = inputs(family)
    model.generate(**prompt, **OURS, max_new_tokens=1, drafter="none")  # the model is probed

    def count(_: nn.Module, args: object, given: dict[str, Any]) -> None:
        read.append(given["input_ids"].shape[1])

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    model.generate(**prompt, **SAMPLED, **OURS, num_return_sequences=3, seed=4, drafter="none")
    handle.remove()
    assert sorted(read)[-2:] == [1, 24]


@pytest.mark.parametrize(
    ("family", "layout"), [("qwen2_audio", "two_audio"), ("llava", "two_images")]
)
def test_each_sequence_of_a_prompt_with_two_media_has_both(family: str, layout: str) -> None:
    model, row = model_of(family, "float64"), inputs(family, layout, tokens=20)
    texts = model.generate(**row, **SAMPLED, **OURS, num_return_sequences=2, seed=4)
    options = {name: value for name, value in SAMPLED.items() if name != "do_sample"}
    result = mmspec.load(model).generate(row, n=2, seed=4, **options)
    for sample, text in zip(result.samples, texts, strict=True):
        assert text[row["input_ids"].shape[1] :].tolist() == list(sample.tokens)


def test_each_sequence_of_a_prompt_of_qwen_omni_sees_its_image() -> None:
    """transformers 5.17 repeats each of its patches, not the image."""
    model = build(*architectures(["qwen2_5_omni"]), torch.float64)
    row = media_inputs(model, "image", [5, 6, 7, 8, 5, 6], seed=0)
    assert isinstance(row, dict)
    (alone,) = model.generate(**row, **SAMPLED, **OURS, seed=4)
    first, _ = model.generate(**row, **SAMPLED, **OURS, seed=4, num_return_sequences=2)
    assert torch.equal(first, alone)
    with pytest.raises(InputError, match="got use_audio_in_video=True, which is not handed on"):
        model.generate(**row, **GREEDY, **OURS, use_audio_in_video=True)


def test_pixels_that_generate_has_repeated_one_by_one_are_told_apart() -> None:
    model, row = model_of("llava", "float64"), inputs("llava", "two_images", tokens=20)
    ids, pixels = (row[name].repeat_interleave(2, dim=0) for name in ("input_ids", "pixel_values"))
    for prompt in split_rows(ids, {"pixel_values": pixels}, model.config, repeats=2):
        assert torch.equal(prompt.model_inputs["pixel_values"], row["pixel_values"])


def test_a_datastore_is_refused_with_the_way_to_use_it(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", [[5, 6, 7]], tokenizer=letters())
    with pytest.raises(ConfigError, match=r"mmspec\.load\(model, processor\).*custom_generate"):
        model_of("llama", "float64").generate(
            **inputs(), **GREEDY, **OURS, drafter=[Retrieval(store)]
        )


def test_each_prompt_can_have_its_seed() -> None:
    model = model_of("llama", "float64")
    same = {name: value.repeat(2, 1) for name, value in inputs().items()}
    one, other = model.generate(**same, **SAMPLED, **OURS, seed=[3, 3])
    assert torch.equal(one, other)
    one, other = model.generate(**same, **SAMPLED, **OURS, seed=3)
    assert not torch.equal(one, other)
    with pytest.raises(InputError, match="1 seed for 2 prompts"):
        model.generate(**same, **SAMPLED, **OURS, seed=[3])


# The user's processors and criteria


class Favours(LogitsProcessor):
    """Keeps state: favours another token at each call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, 10 + self.calls] += 6.0
        self.calls += 1
        return scores


class Stops(StoppingCriteria):
    """Keeps state: ends at its fourth call; notes the scores it is shown."""

    def __init__(self) -> None:
        self.calls = 0
        self.shown: list[int | None] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: object) -> Tensor:
        self.calls += 1
        self.shown.append(scores and len(scores))
        return torch.full((input_ids.shape[0],), self.calls == 4)


@pytest.mark.parametrize("rows", [1, 3])
def test_processors_and_criteria_with_state_act_as_in_transformers(rows: int) -> None:
    model = model_of("llama", "float64")
    batch = batch_of([inputs(tokens=20, seed=n) for n in range(rows)])

    def text(**options: Any) -> Tensor:
        return model.generate(
            **batch,
            **GREEDY,
            logits_processor=[Favours()],
            stopping_criteria=[Stops()],
            repetition_penalty=1.2,
            **options,
        )

    expected = text()
    assert expected.shape[1] == batch["input_ids"].shape[1] + 4
    assert torch.equal(text(**OURS, drafter=eager()), expected)


@pytest.mark.parametrize("keeps", [True, False])
def test_criteria_are_shown_the_scores_where_they_are_kept(keeps: bool) -> None:
    shown = []
    for options in ({}, OURS):
        criterion = Stops()
        model_of("llama", "float64").generate(
            **inputs(),
            **GREEDY,
            stopping_criteria=[criterion],
            return_dict_in_generate=keeps,
            output_scores=keeps,
            **options,
        )
        shown.append(criterion.shown)
    assert shown[0] == shown[1] == [n + 1 if keeps else None for n in range(4)]


def test_allowed_tokens_know_their_row() -> None:
    model = model_of("llama", "float64")
    batch = batch_of([inputs(tokens=20, seed=n) for n in range(2)])

    def allowed(row: int, ids: Tensor) -> list[int]:
        return [t for t in range(3, 100) if t % 4 == (row + int(ids[-1])) % 4]

    options = {**GREEDY, "num_return_sequences": 1, "prefix_allowed_tokens_fn": allowed}
    expected = model.generate(**batch, **options)
    assert torch.equal(model.generate(**batch, **options, **OURS, drafter=eager()), expected)


def test_the_time_limit_and_a_users_length_hold() -> None:
    model = model_of("llama", "float64")
    text = model.generate(**inputs(), **GREEDY, **OURS, max_time=1e-9)
    assert text.shape[1] == inputs()["input_ids"].shape[1] + 1


# The model


def state_of(model: PreTrainedModel) -> dict[str, Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    return {
        "config": model.config.to_dict(),
        "generation_config": model.generation_config.to_dict(),
        "attention": [
            m.config._attn_implementation for m in model.modules() if hasattr(m, "config")
        ],
        "deltas": [m.rope_deltas for m in model.modules() if hasattr(m, "rope_deltas")],
        "hooks": [len(getattr(m, name)) for m in model.modules() for name in hooks],
        "names": [sorted(vars(m)) for m in model.modules()],
        "forwards": [m.forward.__qualname__ for m in model.modules()],
        "mode": [m.training for m in model.modules()],
        "weights": [weight.data_ptr() for weight in model.parameters()],
    }


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2_vl", "qwen3_vl"])
def test_the_model_is_left_as_it_was_found(family: str) -> None:
    layout = "text" if family == "llama" else "image_middle"
    model = FAMILIES[family].build(torch.float64)
    other, prompt = inputs(family, "text", tokens=15, seed=3), inputs(family, layout)
    expected = model.generate(**other, **GREEDY)
    model.generate(**prompt, **GREEDY)
    before = state_of(model)  # as transformers itself leaves it
    model.generate(**prompt, **SAMPLED, **OURS, drafter=eager())
    after = state_of(model)
    for name, value in before.items():
        if name != "deltas":
            assert after[name] == value, name
    for mine, theirs in zip(after["deltas"], before["deltas"], strict=True):
        torch.testing.assert_close(mine, theirs)
    assert torch.equal(model.generate(**other, **GREEDY), expected)


def test_a_model_is_probed_once_and_not_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = []
    probe = known_models.probed_target
    monkeypatch.setattr(known_models, "probed_target", lambda *a: probes.append(1) or probe(*a))
    model = FAMILIES["llama"].build(torch.float64)
    for _ in range(3):
        model.generate(**inputs(), **GREEDY, **OURS)
    assert len(probes) == 1
    model.set_attn_implementation("eager")
    model.generate(**inputs(), **GREEDY, **OURS)
    assert len(probes) == 2
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    ("family", "drafter"),
    [
        ("lfm2", "prompt_lookup"),  # its mixers
        ("bloom", "compressed_kv"),  # whether its queries can be had
        ("llama", "layer_skip"),  # which layers hand on a tuple
    ],
)
def test_what_was_found_about_a_model_is_not_looked_for_again(
    family: str, drafter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = list[int]()
    read = Target.prefill

    def counted(target: Target, prompt: Any, *args: Any, **options: Any) -> Any:
        reads.append(prompt.num_tokens)
        return read(target, prompt, *args, **options)

    model = FAMILIES[family].build(torch.float64)
    expected = model.generate(**inputs(family, "text"), **GREEDY)
    monkeypatch.setattr(Target, "prefill", counted)
    for _ in range(3):
        reads.clear()
        found = model.generate(**inputs(family, "text"), **GREEDY, **OURS, drafter=drafter)
        assert torch.equal(found, expected)
    assert len(reads) == len(inputs(family, "text")["input_ids"])


def test_a_layer_that_was_replaced_is_probed() -> None:
    model, other = (FAMILIES["lfm2"].build(torch.float64) for _ in range(2))
    model.generate(**inputs("lfm2", "text"), **GREEDY, **OURS)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    model.model.layers = other.model.layers
    expected = model.generate(**inputs("lfm2", "text"), **GREEDY)
    for drafter in ("prompt_lookup", eager()):
        found = model.generate(**inputs("lfm2", "text"), **GREEDY, **OURS, drafter=drafter)
        assert torch.equal(found, expected)


def test_a_layer_in_the_memory_of_the_one_before_is_another() -> None:
    """An object's id says nothing once it is gone."""
    model = FAMILIES["llama"].build(torch.float64)
    for _ in range(20):
        model.model.layers = nn.ModuleList([nn.Linear(2, 2)])
        before = known_models._modules(model)
        model.model.layers[0] = nn.Identity()
        model.model.layers[0] = nn.Linear(2, 2)
        assert known_models._modules(model) != before


def test_a_prompt_that_cannot_be_cut_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_reason_against_cuts", lambda *_: "it was seen to matter")
    model, models = FAMILIES["llama"].build(torch.float64), known_models.KnownModels()
    for _ in range(2):
        engine = models.engine(model, Config(), "none")
        assert engine.target.cuts.whole_because == "it was seen to matter"


@pytest.mark.parametrize("filled", [0, 20], ids=["empty", "filled"])
@pytest.mark.parametrize("family", ["llama", "llava"])
def test_a_given_static_cache_changes_nothing(family: str, filled: int) -> None:
    """transformers' assisted generation refuses a static cache."""
    model = model_of(family, "float64")
    prompt = inputs(family, "text" if family == "llama" else "image_last")
    expected = model.generate(**prompt, **GREEDY)
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=64)
    if filled:
        with torch.no_grad():
            model(input_ids=prompt["input_ids"][:, :filled], past_key_values=cache)
    ours = model.generate(**prompt, **GREEDY, **OURS, past_key_values=cache)
    assert torch.equal(ours, expected)
    assert int(cache.get_seq_length()) == filled
    ours = model.generate(**prompt, **GREEDY, **OURS, cache_implementation="static")
    assert torch.equal(ours, expected)


def test_a_processors_output_goes_straight_in() -> None:
    processor, model = build_processor(), build_model("tiny").double().eval()
    processor.tokenizer.padding_side = "left"
    pixels = np.random.default_rng(0).integers(0, 255, (3, 96, 128, 3), dtype=np.uint8)
    first, second, third = (Image.fromarray(one) for one in pixels)
    mark = processor.image_token
    prompt = processor(
        text=[f"{mark} red square, blue circle", f"compare {mark} with {mark}", "green"],
        images=[[first], [second, third], []],
        padding=True,
        return_tensors="pt",
    )
    prompt["pixel_values"] = prompt["pixel_values"].double()
    ours = model.generate(**prompt, **GREEDY, **OURS, drafter=eager())
    assert torch.equal(ours, model.generate(**prompt, **GREEDY))


def test_stop_strings_go_in_as_a_criterion() -> None:
    processor, model = build_processor(), build_model("tiny").double().eval()
    prompt = processor(text="red square, blue circle", return_tensors="pt")
    letters = [processor.tokenizer(one).input_ids[0] for one in "abcdefgh"]
    options: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": 30,
        "no_repeat_ngram_size": 2,
        "prefix_allowed_tokens_fn": lambda row, ids: letters,
    }
    free = model.generate(**prompt, **options)
    text = processor.tokenizer.decode(free[0, prompt["input_ids"].shape[1] :])
    criterion = StopStringCriteria(processor.tokenizer, [text[10:13]])
    options["stopping_criteria"] = [criterion]
    expected = model.generate(**prompt, **options)
    assert expected.shape[1] < free.shape[1]
    assert torch.equal(model.generate(**prompt, **options, **OURS), expected)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "beam search"),
        ({"return_dict_in_generate": True, "output_hidden_states": True}, "output_hidden_states"),
        ({"return_dict_in_generate": True, "output_attentions": True}, "output_attentions"),
        ({"verifier": "hope"}, "verifier='hope'"),
        ({"drafter": "oracle"}, "oracle"),
        ({"position_ids": torch.arange(24).flip(0).unsqueeze(0)}, "position_ids"),
    ],
    ids=str,
)
def test_what_is_not_there_is_refused(options: dict[str, Any], message: str) -> None:
    model = model_of("llama", "float64")
    with pytest.raises((InputError, ConfigError), match=message):
        model.generate(**inputs(), **GREEDY, **OURS, **options)


def test_embeddings_are_refused() -> None:
    model = model_of("llama", "float64")
    embeds = model.get_input_embeddings()(inputs()["input_ids"])
    with pytest.raises(InputError, match="inputs_embeds"):
        model.generate(inputs_embeds=embeds, **GREEDY, **OURS)


def test_it_is_called_through_generate() -> None:
    model = model_of("llama", "float64")
    with pytest.raises(InputError, match="called by itself"):
        mmspec.custom_generate(model, inputs()["input_ids"], [], [], model.generation_config)
