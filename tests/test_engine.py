"""The engine as its users meet it: real processor, template, images, batch, streams, errors."""

import copy
import errno
import gc
import math
import pickle
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import EOS_TOKEN, FAMILIES, prompt_inputs
from PIL import Image
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor

import mmspec
from mmspec import Request
from mmspec.config import Config
from mmspec.controller import AutoController
from mmspec.errors import ConfigError, DecodeError, InputError
from mmspec.integrations.known_models import KnownModels
from mmspec.kv import KVCache
from mmspec.requests import FIELD_NAMES
from mmspec.state import Prompt
from mmspec.target import Target
from mmspec.training.tiny.build import build_model, build_processor

TEXT = "red square, blue circle, red square, blue circle, red square,"
SAMPLED = {"temperature": 1.0, "top_k": 0, "max_new_tokens": 40}


@pytest.fixture(scope="module")
def engine() -> mmspec.Engine:
    """A real processor and template over random weights: what it says is noise, but exact."""
    return mmspec.load(build_model("tiny").double().eval(), build_processor())


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def plain_llama(*overrides: str) -> mmspec.Engine:
    return mmspec.load(FAMILIES["llama"].build(torch.float64), overrides=overrides)


def llama_inputs(**options: int) -> dict[str, Tensor]:
    return prompt_inputs(FAMILIES["llama"], "text", **options)  # type: ignore[arg-type]


# One prompt


def test_an_image_and_a_question_give_the_plain_text(
    engine: mmspec.Engine, picture: Image.Image
) -> None:
    result = engine.generate(TEXT, images=picture, seed=7, **SAMPLED)
    plain = engine.generate(TEXT, images=picture, seed=7, speculate=False, **SAMPLED)
    assert result.text == plain.text and result.tokens == plain.tokens
    assert engine.generate(TEXT, images=picture, seed=8, **SAMPLED).tokens != result.tokens
    assert result.stats.prompt_tokens > 256  # the image's placeholders are there
    assert result.text == "".join(piece.text for piece in result.pieces)


def test_messages_give_what_the_same_string_gives(
    engine: mmspec.Engine, picture: Image.Image
) -> None:
    content = [{"type": "image", "image": picture}, {"type": "text", "text": TEXT}]
    messages = [{"role": "user", "content": content}]
    first = engine.generate(messages, seed=7, **SAMPLED)
    assert first.tokens == engine.generate(TEXT, images=[picture], seed=7, **SAMPLED).tokens


def test_without_a_seed_the_result_shows_the_one_that_was_drawn(engine: mmspec.Engine) -> None:
    first, second = (engine.generate(TEXT, **SAMPLED) for _ in range(2))
    assert first.seed != second.seed
    assert engine.generate(TEXT, seed=first.seed, **SAMPLED).tokens == first.tokens


def test_a_text_ends_at_eos_and_before_a_stop_string(engine: mmspec.Engine) -> None:
    free = engine.generate(TEXT, seed=3, ignore_eos=True, **SAMPLED)
    middle = free.text[len(free.text) // 2 :][:3]
    stopped = engine.generate(TEXT, seed=3, ignore_eos=True, stop=middle, **SAMPLED)
    assert stopped.finish_reason == "stop"
    assert stopped.text == free.text[: free.text.index(middle)]
    eos = free.tokens[10]
    ended = engine.generate(TEXT, seed=3, eos_token_id=eos, **SAMPLED)
    assert ended.finish_reason == "eos"
    assert ended.tokens == free.tokens[: free.tokens.index(eos) + 1]
    assert free.finish_reason == "length"


def test_stop_and_eos_inside_an_accepted_block_cut_it() -> None:
    """A drafted path that runs past the end is accepted up to the end only."""
    engine = plain_llama()
    inputs = llama_inputs(num_text_tokens=30)
    full = engine.generate(inputs, temperature=0, max_new_tokens=30, eos_token_id=EOS_TOKEN).tokens
    from adversary import Adversary

    truth = {tuple(inputs["input_ids"][0].tolist()): full}
    drafting = mmspec.load(engine.target.model, drafter=Adversary(truth, 112))
    for index in range(2, 30):
        ended = drafting.generate(
            inputs, temperature=0, max_new_tokens=30, eos_token_id=full[index]
        )
        assert ended.tokens == full[: full.index(full[index]) + 1]
    for length in range(1, 12):
        assert (
            drafting.generate(inputs, temperature=0, max_new_tokens=length).tokens
            == (full[:length])
        )


def test_min_new_tokens_bias_and_bad_words_are_kept(engine: mmspec.Engine) -> None:
    result = engine.generate(TEXT, seed=1, logit_bias={70: 100.0}, **SAMPLED)
    assert set(result.tokens) == {70}
    letters = [chr(code) for code in range(97, 123)]
    result = engine.generate(TEXT, seed=1, bad_words=letters, **SAMPLED)
    assert not set(letters) & set(result.text)
    eos = engine.target.model.generation_config.eos_token_id
    eos = eos if isinstance(eos, int) else eos[0]
    eager = {"logit_bias": {eos: 100.0}, "seed": 1, **SAMPLED}
    assert len(engine.generate(TEXT, **eager).tokens) == 1
    assert len(engine.generate(TEXT, min_new_tokens=9, **eager).tokens) == 10


# Batches


def test_a_ragged_batch_gives_each_request_its_own_text(
    engine: mmspec.Engine, picture: Image.Image
) -> None:
    requests = [
        Request(TEXT, images=picture, seed=1, temperature=1.0, max_new_tokens=30),
        Request("Hello", seed=2, temperature=0.0, max_new_tokens=5),
        Request(TEXT * 3, seed=3, temperature=0.7, top_p=0.8, max_new_tokens=17),
    ]
    alone = [engine.generate(request) for request in requests]
    together = engine.generate(requests * 4)  # 12 requests in 8 places: some begin later
    assert [r.tokens for r in together] == [r.tokens for r in alone] * 4


class RaisesAt(LogitsProcessor):
    """A user's processor with a fault, at the nth token."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.calls -= 1
        if self.calls < 0:
            raise ZeroDivisionError("a fault in the user's processor")
        return scores


def test_a_processor_that_raises_ends_its_own_row_only(engine: mmspec.Engine) -> None:
    good = Request(TEXT, seed=1, **SAMPLED)
    bad = Request(TEXT, seed=1, logits_processors=[RaisesAt(10)], **SAMPLED)
    first, failed, last = engine.generate([good, bad, good])
    assert first.tokens == last.tokens == engine.generate(good).tokens
    assert isinstance(failed.error, DecodeError) and "ZeroDivisionError" in str(failed.error)
    assert failed.finish_reason == "error"
    assert failed.tokens == first.tokens[:10]  # nothing that was chosen is lost
    with pytest.raises(DecodeError, match="a fault in the user's processor"):
        engine.generate(Request(TEXT, seed=1, logits_processors=[RaisesAt(10)], **SAMPLED))


def test_a_list_of_prompts_is_a_batch_and_a_list_of_messages_is_not(engine: mmspec.Engine) -> None:
    chats = [[{"role": "user", "content": text}] for text in ("One.", "Two, and more.")]
    options = {"max_new_tokens": 5, "temperature": 0}
    together = engine.generate(chats, **options)
    assert [one.text for one in together] == [engine.generate(c, **options).text for c in chats]
    mixed = engine.generate([chats[0], "Two, and more."], **options)
    assert [one.text for one in mixed] == [one.text for one in together]
    prompts = [engine.prepare(chat).prompt for chat in chats]
    processed = [{"input_ids": prompt.token_ids[None]} for prompt in prompts]
    assert [one.text for one in engine.generate(processed, **options)] == [
        one.text for one in mixed
    ]


@pytest.mark.parametrize("wrong", [None, 3])
def test_a_namespace_is_a_text(engine: mmspec.Engine, wrong: object) -> None:
    with pytest.raises(InputError, match="namespace="):
        engine.generate(TEXT, namespace=wrong, max_new_tokens=1)


def test_a_generation_config_is_transformers_own(engine: mmspec.Engine) -> None:
    with pytest.raises(InputError, match=r"generation_config={'num_beams': 2}: expected transf"):
        engine.generate(TEXT, generation_config={"num_beams": 2})


def test_an_engine_says_what_it_is(engine: mmspec.Engine) -> None:
    name = type(engine.target.model).__name__
    assert repr(engine) == f"Engine({name} on cpu, drafter prompt_lookup)"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_engine_cannot_be_copied_and_says_what_to_do(
    copied: Callable[[object], object], engine: mmspec.Engine
) -> None:
    with pytest.raises(TypeError, match=r"load one in each process \(mmspec.load\)"):
        copied(engine)


@pytest.mark.parametrize("begins_within", [True, False])
def test_a_stream_may_cross_the_border_of_an_inference_mode(
    begins_within: bool, engine: mmspec.Engine
) -> None:
    """Buffers that were made within could not be written to outside of it."""
    options = {"seed": 1, "max_new_tokens": 12, "ignore_eos": True, "repetition_penalty": 1.3}
    with torch.inference_mode(begins_within):
        stream = engine.stream(TEXT, **options)
        next(stream)
    with torch.inference_mode(not begins_within):
        next(stream)
    list(stream)
    assert stream.result.tokens == engine.generate(TEXT, **options).tokens


def test_a_callers_autocast_changes_nothing() -> None:
    """The model computes as it was loaded; what is kept of the text would be the lower dtype's."""
    single = mmspec.load("nano-vlm", dtype="float32")
    options = {"max_new_tokens": 4, "output_logits": True}
    expected = single.generate("A mill", reuse=False, **options)
    with torch.autocast("cpu", torch.bfloat16):
        within = single.generate("A mill", **options)
    after = single.generate("A mill", **options)
    for found in (within, after):
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=0)


def test_a_callers_default_device_and_dtype_change_nothing(
    engine: mmspec.Engine, picture: Image.Image
) -> None:
    options = {**SAMPLED, "images": [picture], "seed": 1, "max_new_tokens": 12, "n": 2}
    options |= {"output_scores": True, "logprobs": 2}
    expected = engine.generate(TEXT, **options)
    with torch.device("meta"):
        within = engine.generate(TEXT, **options)
        streamed = "".join(piece.text for piece in engine.stream(TEXT, **{**options, "n": 1}))
    torch.set_default_dtype(torch.bfloat16)
    try:
        lower = engine.generate(TEXT, **options)
    finally:
        torch.set_default_dtype(torch.float32)
    for found in (within, lower):
        assert [one.tokens for one in found.samples] == [one.tokens for one in expected.samples]
        assert found.scores is not None and torch.equal(found.scores, expected.scores)
    assert streamed == expected.text


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_processor_may_have_weights(
    mode: Callable[[], Any], temperature: float, engine: mmspec.Engine
) -> None:
    """As within transformers' generate it runs without gradients, whatever the caller's mode is."""
    weight = torch.nn.Parameter(torch.ones(()))
    options = {"temperature": temperature, "seed": 1, "max_new_tokens": 4}
    expected = engine.generate(TEXT, **options).tokens
    with mode():
        found = engine.generate(TEXT, logits_processors=[lambda _, s: s * weight], **options)
    assert found.tokens == expected


@pytest.mark.parametrize("is_known", [False, True], ids=["load", "custom_generate"])
def test_an_engine_made_within_an_autocast_is_as_any(
    is_known: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The probe would see another model than is decoded."""
    model = FAMILIES["llama"].build(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        made = KnownModels().engine(model, Config(), "none") if is_known else mmspec.load(model)
    assert made.target.attachments.attention == "tree"
    assert not caplog.text


def test_a_request_that_cannot_begin_leaves_the_others_alone(engine: mmspec.Engine) -> None:
    good, bad = Request(TEXT, seed=1, **SAMPLED), Request(TEXT, images="no such file.png")
    first, failed, last = engine.generate([good, bad, good])
    assert first.tokens == last.tokens and len(first.tokens) == 40
    assert isinstance(failed.error, InputError) and "no such file.png" in str(failed.error)


def test_what_fails_of_itself_while_a_prompt_is_prepared_is_told_as_no_mistake_of_its(
    engine: mmspec.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(self: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", lost)
    good, bad = Request(TEXT, seed=1, **SAMPLED), Request(TEXT, images=__file__)
    failed, last = engine.generate([bad, good])
    assert len(last.tokens) == 40
    assert type(failed.error) is DecodeError and "Input/output error" in str(failed.error)
    with pytest.raises(DecodeError) as caught:
        engine.generate(bad)
    assert isinstance(caught.value.__cause__, OSError)


def test_each_prompt_of_a_batch_has_its_own_images(
    engine: mmspec.Engine, picture: Image.Image
) -> None:
    other = Image.eval(picture, lambda value: value // 4)
    options = {"seed": 1, "temperature": 1.0, "max_new_tokens": 20}
    alone = [
        engine.generate(TEXT, images=images, **options).tokens
        for images in (picture, other, [picture, other], ())
    ]
    assert len(set(alone)) == 4
    found = engine.generate([TEXT] * 4, images=[picture, other, [picture, other], None], **options)
    assert [result.tokens for result in found] == alone
    both = engine.generate([TEXT] * 2, images=picture, **options)
    assert [result.tokens for result in both] == [alone[0]] * 2
    one = engine.generate([TEXT], images=[[picture, other]], **options)
    assert [result.tokens for result in one] == [alone[2]]
    with pytest.raises(InputError, match="got images= of 2 for 1 prompt;"):
        engine.generate([TEXT], images=[picture, other], **options)

    streamed = dict(
        engine.generate_each(iter([TEXT] * 3), images=iter([picture, other]), **options)
    )
    assert [streamed[0].tokens, streamed[1].tokens] == alone[:2]
    assert "got images= for 2 prompts, and this is one more" in str(streamed[2].error)
    answers = engine.generate_each(iter([TEXT]), images=iter([picture, other]), **options)
    assert next(answers)[1].tokens == alone[0]  # nothing is lost of what was right
    with pytest.raises(InputError, match="got more images= than 1 prompt"):
        next(answers)


def test_answers_are_handed_on_as_they_end_and_prompts_taken_as_room_comes() -> None:
    engine = plain_llama("decode.max_rows=2")
    taken: list[int] = []

    def prompts() -> Iterator[mmspec.Request]:
        for number in range(6):
            taken.append(number)
            yield mmspec.Request(llama_inputs(), max_new_tokens=2 + number, temperature=0)

    found = []
    for number, result in engine.generate_each(prompts()):
        found.append(number)
        assert len(taken) <= len(found) + 2
        alone = engine.generate(llama_inputs(), max_new_tokens=2 + number, temperature=0)
        assert result.tokens == alone.tokens
    assert sorted(found) == list(range(6))


def test_samples_of_one_request_come_together_and_what_cannot_begin_among_them() -> None:
    engine = plain_llama("decode.max_rows=2")
    good = mmspec.Request(llama_inputs(), max_new_tokens=3, n=3, seed=1)
    bad = mmspec.Request({"input_ids": torch.tensor([[5, 10**6]])})
    found = dict(engine.generate_each([good, bad, good, bad, bad]))
    assert sorted(found) == [0, 1, 2, 3, 4]
    first, again = ([sample.tokens for sample in found[i].samples] for i in (0, 2))
    assert first == again and len(first) == 3
    assert all("vocabulary has" in str(found[number].error) for number in (1, 3, 4))


@pytest.mark.parametrize("missing", [None, math.nan, 5])
def test_what_is_no_prompt_among_several_costs_no_other(
    engine: mmspec.Engine, missing: Any
) -> None:
    """As a table's empty cell: its place among the answers stays."""
    options = {"seed": 1, "max_new_tokens": 4}
    text = engine.generate(TEXT, **options).text
    for prompts in ([TEXT, missing, TEXT], [missing, TEXT, TEXT]):
        found = engine.generate(prompts, images=[None] * 3, **options)
        each = dict(engine.generate_each(iter(prompts), **options))
        for index, prompt in enumerate(prompts):
            if prompt is missing:
                assert "got a prompt of type" in str(found[index].error)
                assert str(each[index].error) == str(found[index].error)
            else:
                assert found[index].text == each[index].text == text


def test_a_wrong_option_of_a_batch_is_the_callers_mistake(engine: mmspec.Engine) -> None:
    with pytest.raises(InputError, match="did you mean 'max_new_tokens'"):
        engine.generate([TEXT, TEXT], max_new_token=3)
    with pytest.raises(InputError, match="temperature=-1"):
        engine.generate_each([TEXT], temperature=-1)


def test_nan_logits_end_the_row_with_a_clear_error() -> None:
    class Nan(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return scores * float("nan")

    with pytest.raises(DecodeError, match="got NaN, expected a finite maximum"):
        plain_llama().generate(llama_inputs(), logits_processors=[Nan()])
    model = FAMILIES["llama"].build(torch.float64)
    broken = mmspec.load(model)
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    for temperature in (0.0, 1.0):
        with pytest.raises(DecodeError, match="got NaN"):
            broken.generate(llama_inputs(), temperature=temperature)


# Streams and threads


def test_the_stream_is_the_text(engine: mmspec.Engine, picture: Image.Image) -> None:
    stream = engine.stream(TEXT, images=picture, seed=7, **SAMPLED)
    with pytest.raises(InputError, match="has not ended"):
        _ = stream.result
    text = "".join(str(piece) for piece in stream)
    result = engine.generate(TEXT, images=picture, seed=7, **SAMPLED)
    assert text == result.text == stream.result.text
    assert stream.result.tokens == result.tokens


def test_a_stream_that_ends_and_is_closed_teaches_its_length_once() -> None:
    controller, options = AutoController(), {"ignore_eos": True}
    target = Target(FAMILIES["llama"].build(torch.float64))
    engine = mmspec.Engine(target, None, controller=controller)
    with engine.stream(llama_inputs(), max_new_tokens=2, **options) as stream:
        list(stream)
    for _ in range(2):
        engine.generate(llama_inputs(), max_new_tokens=9, **options)
    assert controller.lengths.usual == 9, "of 2, 9 and 9 tokens"


def test_a_streams_steps_count_the_tokens_that_are_there(engine: mmspec.Engine) -> None:
    with engine.stream(TEXT, seed=7, **SAMPLED) as stream:
        counts = list(stream.steps())
    result = stream.result
    assert counts[0] == 1  # of the prompt's own logits
    assert counts == sorted(set(counts))
    assert (counts[-1], len(counts)) == (len(result.tokens), 1 + result.stats.steps)
    assert result.text == engine.generate(TEXT, seed=7, **SAMPLED).text


def test_closing_a_stream_early_frees_its_kv(
    engine: mmspec.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches: list[KVCache] = []
    new_cache = engine.target.new_cache

    def remembered(**options: int) -> KVCache:
        caches.append(new_cache(**options))
        return caches[-1]

    monkeypatch.setattr(engine.target, "new_cache", remembered)
    with engine.stream(TEXT, seed=7, **SAMPLED) as stream:
        next(stream)
        assert caches[0].num_bytes > 0 and caches[0].rows
    assert caches[0].num_bytes == 0 and not caches[0].rows
    assert stream.result.finish_reason == "closed"
    assert 0 < len(stream.result.tokens) < 40
    stream = engine.stream(TEXT, seed=7, **SAMPLED)
    next(stream)
    left = weakref.ref(caches.pop())
    del stream, caches[:]
    gc.collect()
    assert left() is None  # a stream that is only dropped frees it too


def test_two_threads_get_the_texts_of_one(engine: mmspec.Engine, picture: Image.Image) -> None:
    requests = [
        Request(TEXT, images=picture if seed % 2 else (), seed=seed, **SAMPLED) for seed in range(6)
    ]
    expected = [engine.generate(request).tokens for request in requests]
    found: dict[int, tuple[int, ...]] = {}

    def work(mine: Iterator[int]) -> None:
        for index in mine:
            found[index] = engine.generate(requests[index]).tokens

    threads = [threading.Thread(target=work, args=(range(start, 6, 3),)) for start in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(6)] == expected


# What is refused


def test_a_prompt_that_does_not_fit_the_context_is_refused() -> None:
    engine = plain_llama()
    context = engine.target.max_positions
    with pytest.raises(InputError, match=f"context holds {context}.*max_new_tokens <= "):
        engine.generate(llama_inputs(), max_new_tokens=context)
    room = context - llama_inputs()["input_ids"].shape[1]
    with pytest.raises(InputError, match=f"max_new_tokens <= {room}"):
        engine.generate(llama_inputs(), max_new_tokens=room + 1)


def test_the_last_place_of_the_context_is_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "max_positions", 12)
    engine, options = plain_llama(), {"ignore_eos": True, "temperature": 0}
    for wanted in (None, 1):
        result = engine.generate(llama_inputs(num_text_tokens=11), max_new_tokens=wanted, **options)
        assert (result.stats.prompt_tokens, len(result.tokens)) == (11, 1)
    with pytest.raises(InputError, match=r"has 12 tokens: .* holds 12, the answer included"):
        engine.generate(llama_inputs(num_text_tokens=12))


def test_where_a_model_has_no_context_it_is_as_long_as_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Target, "max_positions", None)
    monkeypatch.setattr("mmspec.admission.DEFAULT_MAX_NEW_TOKENS", 5)
    engine = plain_llama()
    for wanted, expected in ((None, 5), (3, 3)):
        made = engine.generate(llama_inputs(), max_new_tokens=wanted, ignore_eos=True)
        assert len(made.tokens) == expected


def test_a_greedy_rule_refuses_what_samples_before_the_prompt_is_read() -> None:
    engine, read = plain_llama("decode.verifier=greedy"), list[int]()
    options = {"max_new_tokens": 3, "on_prefill": lambda done, of: read.append(done)}
    with pytest.raises(ConfigError, match=r"verifier=greedy.*expected temperature=0"):
        engine.generate(llama_inputs(), temperature=1.0, **options)
    assert not read
    assert engine.generate(llama_inputs(), temperature=0.0, **options).tokens and read


def test_drafts_never_reach_past_the_context() -> None:
    """With learned positions a node past the last position would crash the forward."""
    model = FAMILIES["gpt2"].build(torch.float64)
    engine = mmspec.load(model)
    context = engine.target.max_positions
    assert context is not None
    ids = torch.randint(3, 90, (1, 8)).repeat(1, context // 8)[:, : context - 12]
    speculative = engine.generate({"input_ids": ids}, temperature=0, max_new_tokens=12)
    plain = engine.generate({"input_ids": ids}, temperature=0, max_new_tokens=12, speculate=False)
    assert speculative.tokens == plain.tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 0}, r"top_p=0: expected a number in \(0, 1\]"),
        ({"temperature": -1}, "temperature=-1: expected a number >= 0"),
        ({"max_new_token": 5}, "unknown option 'max_new_token': did you mean 'max_new_tokens'"),
        ({"num_beams": 4}, "beam search is not supported"),
        ({"penalty_alpha": 0.6}, "contrastive search is not supported"),
        ({"audios": b""}, "unknown option 'audios': did you mean 'audio'"),
        ({"stop": ""}, "an empty stop string"),
        ({"seed": -1}, "seed=-1: expected a whole number"),
        ({"max_length": 9}, "max_length=: here it is max_new_tokens=, which"),
        ({"stop_strings": "."}, "stop_strings=: here it is stop=$"),
        ({"streamer": None}, "streamed by engine.stream"),
        ({"response_format": {}}, "here it is logits_processors=.JsonGuide"),
        ({"template_arguments": "tools"}, "template_arguments='tools': expected variables"),
        ({"on_prefill": 3}, "on_prefill=3: expected a function"),
        ({"is_wanted": True}, "is_wanted=True: expected a function"),
        ({"reuse": "no"}, "reuse='no': expected True or False"),
        ({"do_sample": "no"}, "do_sample='no': expected True or False"),
        ({"n": None}, "n=None: expected a whole number"),
        ({"n": 0}, "n=0"),
        ({"n": True}, "n=True"),
        ({"logprobs": -1}, "logprobs=-1"),
        ({"logprobs_of": "cooked"}, "'raw' or 'processed'"),
        ({"max_time": 0}, "seconds > 0"),
        ({"sample": 2**32 - 1, "n": 2}, "2\\^32"),
        ({"stopping_criteria": [3]}, "StoppingCriteria"),
        ({"num_return_sequences": 2}, "num_return_sequences=: here it is n=$"),
    ],
)
def test_a_wrong_option_is_refused_by_name(
    engine: mmspec.Engine, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        engine.generate(TEXT, **options)


@pytest.mark.parametrize("drafter", [3, ["prompt_lookup", "lookahead"]])
def test_a_drafter_is_a_name_or_an_object(engine: mmspec.Engine, drafter: Any) -> None:
    with pytest.raises(ConfigError, match=r"drafter=.*: expected a name, several joined by \+"):
        mmspec.load(engine.target.model, drafter=drafter)


@pytest.mark.parametrize("one", [TEXT, mmspec.Request(TEXT), {"input_ids": torch.ones(1, 3)}])
def test_one_prompt_is_not_several(engine: mmspec.Engine, one: object) -> None:
    for method in (engine.generate_each, engine.stream_each):
        with pytest.raises(InputError, match="as prompts; expected several"):
            method(one)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["images", "system", "documents"])
def test_nothing_is_put_into_a_processed_prompt(picture: Image.Image, name: str) -> None:
    beside = {"images": picture, "system": "Be brief.", "documents": [{"text": "A"}]}[name]
    with pytest.raises(InputError, match=f"got {name} beside a processed prompt"):
        plain_llama().generate(llama_inputs(), **{name: beside})
    plain_llama().generate(llama_inputs(), images=[], system=None, max_new_tokens=1)


def test_a_generation_config_that_asks_for_beams_is_refused() -> None:
    model = FAMILIES["llama"].build(torch.float64)
    model.generation_config.num_beams = 3
    with pytest.raises(InputError, match="num_beams=3"):
        mmspec.load(model).generate(llama_inputs())


def test_what_is_no_prompt_is_refused(engine: mmspec.Engine) -> None:
    for empty in ("", Prompt(torch.empty(0, dtype=torch.long))):
        with pytest.raises(InputError, match=r"no tokens|empty"):
            engine.generate(empty, raw=True)
    most = engine.target.num_embeddings
    for token in (10**6, most, -1, -100):  # as labels have it
        with pytest.raises(InputError, match=f"token id {token} in the prompt: .*vocabulary has"):
            engine.generate({"input_ids": torch.tensor([[5, token]])})
    for edge in (0, most - 1):
        engine.generate({"input_ids": torch.tensor([[edge]])}, max_new_tokens=1)
    with pytest.raises(InputError, match="no tokenizer or processor"):
        plain_llama().generate("text")
    for wrong, told in (
        (None, "got None for a prompt"),
        ({"role": "user", "content": "a"}, "expected a list of them"),
        ([5, 6, 7], '{"input_ids": tensor}'),
    ):
        with pytest.raises(InputError, match=re.escape(told)):
            engine.generate(wrong)
    with pytest.raises(InputError, match="need a tokenizer"):
        plain_llama().generate(llama_inputs(), stop="x")


def test_unknown_drafters_verifiers_and_keys_are_refused() -> None:
    model = FAMILIES["llama"].build(torch.float64)
    with pytest.raises(ConfigError, match="prompt_lookup"):
        mmspec.load(model, drafter="promt_lookup")
    with pytest.raises(ConfigError, match="coupled"):
        mmspec.load(model, overrides=["decode.verifier=typical"])
    with pytest.raises(ConfigError, match="max_nodes"):
        mmspec.load(model, overrides=["decode.max_node=3"])
    with pytest.raises(ConfigError, match="max_rows=0: expected 1 or more"):
        mmspec.load(model, overrides=["decode.max_rows=0"])
    with pytest.raises(ConfigError, match="max_nodes=-3: expected 0"):
        mmspec.load(model, overrides=["decode.max_nodes=-3"])


@pytest.mark.parametrize(
    "wrong",
    [
        "drafter.name=promt_lookup",
        "decode.verifier=couple",
        "decode.exactness=bits",
        "inputs.control_tokens=drop",
    ],
)
def test_a_misspelt_choice_is_told_before_the_model_is_loaded(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmspec.build.load_model", lambda *args, **options: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match="expected"):
        mmspec.load("tiny-vlm", overrides=[wrong])


def test_every_option_is_told_in_the_docstring() -> None:
    told = set(re.findall(r"`(\w+)`", mmspec.Request.__doc__ or ""))
    assert set(FIELD_NAMES) <= told


def test_a_result_is_shown_by_its_text(engine: mmspec.Engine) -> None:
    result = engine.generate(TEXT, max_new_tokens=4, seed=1, logprobs=2)
    assert repr(result) == (
        f"Result(text={result.text!r}, finish_reason='length', seed=1, error=None, sample=0, "
        "others=())"
    )


def test_the_models_generation_config_gives_the_defaults() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=112, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double().eval()
    model.generation_config.update(do_sample=True, temperature=0.5, top_k=7, max_new_tokens=11)
    engine = mmspec.load(model)
    result = engine.generate(llama_inputs(), seed=2)
    explicit = {"temperature": 0.5, "top_k": 7, "max_new_tokens": 11, "seed": 2}
    model.generation_config.update(do_sample=False, temperature=1.0, top_k=50, max_new_tokens=3)
    assert result.tokens == engine.generate(llama_inputs(), **explicit).tokens
    assert len(result.tokens) == 11


def test_an_error_that_is_not_mmspecs_own_costs_its_own_request_only() -> None:
    """transformers raises ValueError and TypeError of its own while a request is built."""
    good = Request(llama_inputs(), seed=1, **SAMPLED)
    config = mmspec.load(FAMILIES["llama"].build(torch.float64)).target.model.generation_config
    config.suppress_tokens = ["no token id"]
    bad = Request(llama_inputs(), generation_config=config, max_new_tokens=3)
    first, failed, last = plain_llama().generate([good, bad, good])
    assert first.tokens == last.tokens and len(first.tokens) == 40
    assert failed.error is not None and failed.seed is None


@pytest.mark.drafter_fails
def test_a_drafter_cannot_write_into_the_text() -> None:
    class Writes:
        name = "writes"

        def start(self, prompt: object, prefill: object, guide: object) -> "Writes":
            return self

        def propose(self, tokens: list[int], budget: int) -> object:
            tokens[-1] = 5
            raise RuntimeError("and fails")

        def observe(self, *_: object) -> None: ...

        def close(self) -> None: ...

    engine = mmspec.load(FAMILIES["llama"].build(torch.float64), drafter=Writes())  # type: ignore[arg-type]
    result = engine.generate(llama_inputs(), seed=1, **SAMPLED)
    assert result.tokens == plain_llama().generate(llama_inputs(), seed=1, **SAMPLED).tokens
