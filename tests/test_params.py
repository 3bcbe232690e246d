"""SamplingParams: what is refused, and what is left to the model's generation_config."""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from inputs.text_families import build_tokenizer
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    PreTrainedModel,
    StoppingCriteria,
)

import mmspec
from mmspec.errors import InputError
from mmspec.params import (
    MAX_SEED,
    SamplingParams,
    merged_generation_config,
    requested_max_new_tokens,
    stop_strings,
)
from mmspec.requests import Request


@cache
def _llama() -> PreTrainedModel:
    return FAMILIES["llama"].build(torch.float32)


def merged(params: SamplingParams, model: PreTrainedModel | None = None) -> GenerationConfig:
    return merged_generation_config(
        model or _llama(),
        params,
        tokenizer=build_tokenizer("qwen"),
        prompt_length=5,
        max_new_tokens=9,
    )


# LAW: refusals


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-0.1, 1e-40, 1e40, math.nan, math.inf, True, "0.7")),
        pytest.param("temperature", 10**400, id="temperature-10**400"),
        *(("top_k", value) for value in (-1, 2.5, True, "5")),
        *(("top_p", value) for value in (0, 0.0, -0.1, 1.01, math.nan, "0.9")),
        *(("min_p", value) for value in (-0.01, 1.01, math.nan, "0.1")),
        *(("repetition_penalty", value) for value in (0, -1.0, 1e-300, math.inf, math.nan, "1.1")),
        *(("presence_penalty", value) for value in (math.nan, math.inf, -1e300, "1")),
        *(("frequency_penalty", value) for value in (math.nan, -math.inf, "1")),
        *(("max_new_tokens", value) for value in (0, -1, 1.5, True, "5")),
        *(("min_new_tokens", value) for value in (-1, 1.5, True)),
        ("logits_processors", [LogitsProcessor]),
        ("stopping_criteria", [StoppingCriteria]),
        *(("seed", value) for value in (-1, MAX_SEED + 1, 1.5, True, "7")),
        *(("n", value) for value in (0, 1.5, True)),
        *(("sample", value) for value in (-1, 2**32, 1.5, True)),
        *(("logprobs", value) for value in (-1, 1.5, True)),
        *(("prompt_logprobs", value) for value in (-1, 1.5, True)),
        *(("max_time", value) for value in (0, -1.0, math.inf, True, "5")),
    ],
)
def test_an_invalid_value_is_refused_with_got_and_expected(name: str, value: object) -> None:
    with pytest.raises(InputError) as refusal:
        SamplingParams(**{name: value})
    message = str(refusal.value)
    assert message.startswith(f"{name}={value!r:.80}: expected "), message
    assert any(word in message for word in ("number", "[", ">")), message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (0, 0.0, 1e-6, 5)),
        *(("top_k", value) for value in (0, 1)),
        *(("top_p", value) for value in (1e-9, 1, 1.0)),
        *(("min_p", value) for value in (0, 1)),
        *(("presence_penalty", value) for value in (-2, 2.0)),
        *(("seed", value) for value in (0, MAX_SEED)),
        ("min_new_tokens", 0),
        ("max_new_tokens", 1),
        ("sample", 2**32 - 1),
        ("logprobs", 0),
        ("prompt_logprobs", 0),
        ("eos_token_id", 0),
        ("logit_bias", {0: 1e30}),
        ("max_time", 1e-3),
    ],
)
def test_values_at_the_border_are_taken(name: str, value: object) -> None:
    assert getattr(SamplingParams(**{name: value}), name) == value


def test_the_last_samples_number_is_taken_and_none_beyond_it() -> None:
    assert Request("a", sample=2**32 - 2, n=2).n == 2
    with pytest.raises(InputError, match=r"n=2: expected a sum of at most 2\^32"):
        Request("a", sample=2**32 - 1, n=2)


def test_numbers_of_numpy_are_numbers() -> None:
    params = SamplingParams(seed=np.uint64(MAX_SEED), temperature=np.float32(0.5), n=np.int8(2))
    assert (params.seed, params.temperature, params.n) == (MAX_SEED, 0.5, 2)
    assert {type(params.seed), type(params.n), type(params.temperature)} == {int, float}
    with pytest.raises(InputError, match="max_new_tokens=0: expected"):
        SamplingParams(max_new_tokens=np.int64(0))
    among = SamplingParams(eos_token_id=[np.int64(5)], logit_bias={np.int64(6): np.float32(2)})
    assert merged(among).sequence_bias == [[[6], 2.0]] and merged(among).eos_token_id == [5]
    with pytest.raises(InputError, match="logit_bias"):
        SamplingParams(logit_bias={6: np.float32(np.nan)})


@pytest.mark.parametrize(
    "options",
    [{"temperature": 2}, {"repetition_penalty": 2}, {"presence_penalty": 2**64, "top_p": 1}],
)
def test_a_whole_number_is_a_number(options: dict[str, Any]) -> None:
    asked = {"max_new_tokens": 8, "seed": 1, "temperature": 0.5, **options}
    engine = mmspec.load("nano-vlm", drafter="none")
    floats = {name: float(value) for name, value in options.items()}
    expected = engine.generate("Hi", **{**asked, **floats})
    assert engine.generate("Hi", **asked).tokens == expected.tokens


def test_none_is_nothing_of_what_may_be_several() -> None:
    params = SamplingParams(stop=None, logits_processors=None)  # type: ignore[arg-type]
    assert (params.stop, params.logits_processors) == ((), ())


def test_an_empty_stop_string_is_refused() -> None:
    for stop in ("", ["x", ""]):
        with pytest.raises(InputError, match="empty stop string"):
            SamplingParams(stop=stop)


def test_one_stop_string_is_a_list_of_one() -> None:
    assert SamplingParams(stop="end").stop == ("end",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", 5),
        ("stop", [5]),
        ("logit_bias", {"total": 1.0}),
        ("logit_bias", {5: math.nan}),
        ("logit_bias", {5: "1"}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {112: 1.0}),  # the vocabulary ends at 111
        ("bad_words", [5]),
        ("eos_token_id", "</s>"),
        ("eos_token_id", -1),
        ("eos_token_id", [2, 2**64]),
    ],
)
def test_an_invalid_collection_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        merged(SamplingParams(**{name: value}))


def test_one_bad_word_is_a_list_of_one() -> None:
    one, listed = SamplingParams(bad_words="total"), SamplingParams(bad_words=["total"])
    assert merged(one).bad_words_ids == merged(listed).bad_words_ids


@pytest.mark.parametrize(
    ("mode", "value", "reason"),
    [
        ("num_beams", 4, "beam search"),
        ("penalty_alpha", 0.6, "contrastive search"),
        ("guidance_scale", 1.5, "classifier-free guidance"),
    ],
)
def test_modes_that_are_not_sampling_are_refused_by_name(
    mode: str, value: float, reason: str
) -> None:
    config = GenerationConfig(**{mode: value})
    with pytest.raises(InputError, match=f"{reason} .{mode}={value}"):
        merged(SamplingParams(generation_config=config))


def test_bad_words_need_a_tokenizer_and_tokens() -> None:
    with pytest.raises(InputError, match="need a tokenizer"):
        merged_generation_config(
            _llama(),
            SamplingParams(bad_words=["x"]),
            tokenizer=None,
            prompt_length=5,
            max_new_tokens=9,
        )
    with pytest.raises(InputError, match="without tokens"):
        merged(SamplingParams(bad_words=[""]))


# LAW: greedy or sampling


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"repetition_penalty": 1.2, "seed": 7}, None),
        ({"temperature": 0}, False),
        ({"temperature": 0.0, "top_p": 0.9}, False),
        ({"temperature": 0, "do_sample": True}, False),
        ({"temperature": 0.7}, True),
        ({"top_k": 5}, True),
        ({"top_p": 0.9}, True),
        ({"min_p": 0.1}, True),
        ({"do_sample": True}, True),
        ({"do_sample": False, "temperature": 0.7}, False),
    ],
)
def test_asks_for_sampling(options: dict[str, Any], expected: bool | None) -> None:
    assert SamplingParams(**options).asks_for_sampling is expected


@pytest.mark.parametrize("model_samples", [True, False])
def test_who_asks_for_nothing_gets_what_the_model_says(
    model_samples: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_llama().generation_config, "do_sample", model_samples)
    assert merged(SamplingParams()).do_sample is model_samples
    assert merged(SamplingParams(temperature=0)).do_sample is False
    assert merged(SamplingParams(temperature=0.5)).do_sample is True


# LAW: layers of defaults


def test_the_users_value_wins_over_the_models_and_that_over_transformers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_llama().generation_config, "top_k", 7)
    assert merged(SamplingParams(temperature=0.7)).top_k == 7
    assert merged(SamplingParams(top_k=3)).top_k == 3
    assert merged(SamplingParams(top_k=0)).top_k == 0, "0 turns it off"
    assert merged(SamplingParams(generation_config=GenerationConfig(top_k=9))).top_k == 9


def test_merging_changes_neither_the_models_config_nor_the_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = GenerationConfig(top_k=9, bad_words_ids=[[1]])
    before = theirs.to_dict(), _llama().generation_config.to_dict()
    for config in (None, theirs):
        merged(SamplingParams(temperature=0.3, bad_words=["x"], generation_config=config))
    assert before == (theirs.to_dict(), _llama().generation_config.to_dict())


def test_eos_is_the_models_the_users_or_none() -> None:
    assert merged(SamplingParams()).eos_token_id == _llama().generation_config.eos_token_id
    assert merged(SamplingParams(eos_token_id=[5, 6])).eos_token_id == [5, 6]
    assert merged(SamplingParams(eos_token_id=5, ignore_eos=True)).eos_token_id is None


def test_logit_bias_becomes_transformers_sequence_bias() -> None:
    assert merged(SamplingParams(logit_bias={5: 1, 6: -2.5})).sequence_bias == [
        [[5], 1.0],
        [[6], -2.5],
    ]


def test_bad_words_are_banned_at_the_start_and_after_a_space() -> None:
    tokenizer = build_tokenizer("qwen")
    banned = merged(SamplingParams(bad_words=["total", "Bild"])).bad_words_ids
    assert tokenizer.batch_decode(banned) == ["total", " total", "Bild", " Bild"]


def test_max_new_tokens_is_the_users_or_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def requested(**params: Any) -> int | None:
        return requested_max_new_tokens(_llama(), SamplingParams(**params), prompt_length=8)

    assert requested() is None
    monkeypatch.setattr(_llama().generation_config, "max_length", 20)
    assert requested() == 12, "max_length counts the prompt too"
    monkeypatch.setattr(_llama().generation_config, "max_length", 5)
    assert requested() == 1, "there is room for one token at least, as in transformers"
    monkeypatch.setattr(_llama().generation_config, "max_new_tokens", 30)
    assert requested() == 30
    assert requested(max_new_tokens=4) == 4
    assert requested(generation_config=GenerationConfig(max_new_tokens=7)) == 7
    assert requested(generation_config=GenerationConfig()) is None, "in place of the model's"


@pytest.mark.parametrize("theirs", ["end", ["end"], ("end",)])
def test_stop_strings_are_the_users_else_the_configs(theirs: str | list[str]) -> None:
    config = GenerationConfig(stop_strings=theirs)
    assert stop_strings(config, SamplingParams()) == ("end",)
    assert stop_strings(config, SamplingParams(stop="x")) == ("x",)
    assert stop_strings(GenerationConfig(), SamplingParams()) == ()


# ORACLE


@pytest.mark.parametrize(
    ("params", "options"),
    [
        ({}, {}),
        ({"temperature": 0.7}, {"do_sample": True, "temperature": 0.7}),
        ({"top_p": 0.9, "top_k": 0}, {"do_sample": True, "top_p": 0.9, "top_k": 0}),
        ({"min_p": 0.1}, {"do_sample": True, "min_p": 0.1}),
        ({"temperature": 0}, {"do_sample": False}),
        (
            {"repetition_penalty": 1.3, "min_new_tokens": 2},
            {"repetition_penalty": 1.3, "min_new_tokens": 2},
        ),
        ({"eos_token_id": [5, 6]}, {"eos_token_id": [5, 6]}),
    ],
)
def test_the_merged_config_is_the_one_that_transformers_makes(
    params: dict[str, Any], options: dict[str, Any]
) -> None:
    expected, _ = _llama()._prepare_generation_config(None, max_new_tokens=9, **options)
    expected.max_length = 5 + 9  # transformers sets it a step later: prompt and new tokens
    assert merged(SamplingParams(**params)).to_dict() == expected.to_dict()
