"""Passages and earlier outputs, through the engine: drafts from them, and never another text."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from families import FAMILIES, prompt_inputs
from matrix import model_of

import mmspec
from mmspec import Engine, Passage, Request, Result
from mmspec.errors import InputError
from mmspec.inputs import from_inputs
from mmspec.training.tiny.data import caption, quote, receipt

DRAFTERS = ("prompt_lookup", "retrieval", "prompt_lookup+retrieval")
NOTES = ["The total of March is 42.50 euros.", Passage("The fox sleeps.", source="fox.md")]


def load(drafter: str) -> Engine:
    return mmspec.load("tiny-vlm", drafter=drafter, overrides=["decode.controller=fixed"])


@pytest.fixture(scope="module", params=DRAFTERS)
def engine(request: pytest.FixtureRequest) -> Engine:
    return load(request.param)


@pytest.fixture(scope="module")
def both() -> Engine:
    return load("prompt_lookup+retrieval")


@pytest.fixture
def retrieval() -> Engine:
    """New for each test: it keeps what was generated."""
    return load("retrieval")


def accepted(result: Result) -> int:
    return sum(count.accepted for count in result.stats.by_drafter.values())


def ask(engine: Engine, prompt: Any, **options: Any) -> Result:
    """Drafted, and the same text as plain."""
    options = {"max_new_tokens": 60, "temperature": 0, "seed": 3, "reuse": False, **options}
    result = engine.generate(prompt, **options)
    plain = engine.generate(prompt, **options, speculate=False)
    for one, other in zip(result.samples, plain.samples, strict=True):
        assert one.tokens == other.tokens
    return result


# Every way to ask.


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_passages_change_no_token_whatever_the_drafter(engine: Engine, temperature: float) -> None:
    ledger = quote(Random("passages"), held_out=True, num_chars=300)
    *entries, question = ledger.prompt_text.splitlines()
    result = ask(engine, question, passages=entries, temperature=temperature, max_new_tokens=30)
    assert result.stats.prompt_tokens > len("".join(entries)) // 4, "they are in the prompt"
    if temperature == 0:
        assert accepted(result) > 0, "the answer quotes"


def test_messages_raw_text_and_images_take_passages(both: Engine) -> None:
    picture = caption(Random("passages"), held_out=True)
    parts = [{"type": "image"}, {"type": "text", "text": picture.prompt_text}]
    prompts: list[tuple[Any, dict[str, Any]]] = [
        ([{"role": "user", "content": parts}], {"images": picture.image}),
        (picture.prompt_text, {"images": picture.image}),
        ("Quote: ", {"raw": True}),
        ("Quote: ", {"passage_template": "{{ question }}{{ passages[0].text }}"}),
    ]
    for prompt, options in prompts:
        with_them = ask(both, prompt, passages=NOTES, max_new_tokens=12, **options)
        none = both.generate(prompt, passages=[], max_new_tokens=1, **options)
        options["passage_template"] = None
        without = both.generate(prompt, max_new_tokens=1, **options)
        assert with_them.stats.prompt_tokens > without.stats.prompt_tokens
        assert none.stats.prompt_tokens == without.stats.prompt_tokens


def test_a_batch_has_its_own_passages_a_request(both: Engine) -> None:
    ledgers = [quote(Random(f"batch {n}"), held_out=True, num_chars=200) for n in range(3)]
    requests = []
    for n, ledger in enumerate(ledgers):
        *entries, question = ledger.prompt_text.splitlines()
        beside = [Passage("\n".join(entries), in_prompt=n != 1)]
        requests.append(Request(question, passages=beside, max_new_tokens=40, temperature=0))
    results = both.generate(requests, reuse=False)
    alone = [both.generate(one, speculate=False, reuse=False) for one in requests]
    assert [result.tokens for result in results] == [result.tokens for result in alone]
    assert results[0].stats.prompt_tokens > results[1].stats.prompt_tokens
    assert accepted(results[0]) > 0


def test_samples_have_the_same_passages(both: Engine) -> None:
    result = ask(both, "Quote.", passages=NOTES, n=2, temperature=1.0, max_new_tokens=12)
    assert len({sample.stats.prompt_tokens for sample in result.samples}) == 1


def test_a_chat_takes_passages_a_turn(both: Engine) -> None:
    texts = []
    for speculate in (True, False):
        chat = both.chat(temperature=0, max_new_tokens=16, reuse=False, speculate=speculate)
        first = chat.send("Quote Entry 1", passages=["Entry 1: Bo ate 3 figs."])
        second = chat.send("And?")
        texts.append((first.text, second.text))
        asked = chat.messages[0]["content"][0]["text"]
        assert asked == "Quote Entry 1", "a turn's passages are its own"
    assert texts[0] == texts[1]


# Beside the prompt.


def test_a_pages_text_layer_drafts_its_transcription(engine: Engine) -> None:
    page = receipt(Random("layer"), held_out=True)
    options = {"images": page.image, "max_new_tokens": 50}
    alone = ask(engine, "Transcribe the page.", **options)
    layer = Passage(page.answer, in_prompt=False)
    drafted = ask(engine, "Transcribe the page.", passages=layer, **options)
    assert drafted.tokens == alone.tokens, "the target never reads it"
    assert drafted.stats.prompt_tokens == alone.stats.prompt_tokens
    assert accepted(drafted) > accepted(alone) + 20


def test_a_processed_prompt_stays_and_its_passages_draft(both: Engine) -> None:
    assert both.inputs is not None
    prompt = both.inputs.encode("Tell a story.")
    alone = ask(both, prompt)
    drafted = ask(both, prompt, passages=alone.text)
    assert drafted.tokens == alone.tokens and accepted(drafted) > accepted(alone)


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_without_a_tokenizer_token_lists_are_taken(drafter: str) -> None:
    model = model_of("llama", "float64")
    engine = mmspec.load(model, drafter=drafter, overrides=["decode.controller=fixed"])
    inputs = prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=20)
    plain = engine.generate(inputs, max_new_tokens=20, temperature=0, speculate=False)
    with pytest.raises(InputError, match="no tokenizer: got passages"):
        engine.generate(inputs, passages="P")
    prompt = replace(from_inputs(inputs, model.config), draft_texts=(plain.tokens,))
    drafted = engine.generate(prompt, max_new_tokens=20, temperature=0, reuse=False)
    assert drafted.tokens == plain.tokens and accepted(drafted) > 10


# What was generated.

STORY = {"max_new_tokens": 40, "temperature": 0, "seed": 1}


def test_an_earlier_answer_drafts_for_its_namespace_alone(retrieval: Engine) -> None:
    first = retrieval.generate("Tell a story.", namespace="a", **STORY)
    again = retrieval.generate("Tell a story.", namespace="a", **STORY)
    other = retrieval.generate("Tell a story.", namespace="b", **STORY)
    unused = retrieval.generate("Tell a story.", namespace="a", reuse=False, **STORY)
    assert first.tokens == again.tokens == other.tokens == unused.tokens
    assert accepted(again) >= 35 > accepted(first)
    assert accepted(other) < 35 and accepted(unused) < 35


def test_a_request_without_reuse_leaves_no_draft(retrieval: Engine) -> None:
    retrieval.generate("Tell a story.", reuse=False, **STORY)
    assert accepted(retrieval.generate("Tell a story.", **STORY)) < 35


def test_clearing_the_cache_forgets_earlier_answers(retrieval: Engine) -> None:
    for namespace in ("a", "b"):
        retrieval.generate("Tell a story.", namespace=namespace, **STORY)
    retrieval.clear_cache("a")
    a, b = (retrieval.generate("Tell a story.", namespace=n, **STORY) for n in ("a", "b"))
    assert accepted(a) < 35 <= accepted(b)


def test_what_a_closed_stream_said_drafts_too(retrieval: Engine) -> None:
    with retrieval.stream("Tell a story.", **STORY) as stream:
        for _, _ in zip(stream, range(25), strict=False):
            pass
    told = len(stream.result.tokens)
    again = retrieval.generate("Tell a story.", **STORY)
    assert stream.result.finish_reason == "closed" and told >= 15
    assert accepted(again) >= told - 5


def test_plain_decoding_leaves_no_draft(retrieval: Engine) -> None:
    retrieval.generate("Tell a story.", speculate=False, **STORY)
    assert accepted(retrieval.generate("Tell a story.", **STORY)) < 35


def test_threads_share_what_was_generated(retrieval: Engine) -> None:
    from concurrent.futures import ThreadPoolExecutor

    torch.set_num_threads(1)
    expected = retrieval.generate("Tell a story.", speculate=False, **STORY).tokens
    with ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(retrieval.generate, "Tell a story.", namespace=f"{n % 2}", **STORY)
            for n in range(8)
        ]
        assert all(call.result().tokens == expected for call in calls)
