"""Taps: a drafter gets the hidden states that it asked for, and nobody else's are kept."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from adversary import Adversary
from families import FAMILIES, prompt_inputs
from families.vision import FIRST_MEDIA_TOKEN
from listener import Listener, native
from matrix import model_of
from torch import Tensor
from transformers import GenerationConfig

import mmspec
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.engine import Engine
from mmspec.errors import ConfigError
from mmspec.requests import Request
from mmspec.state import Prompt, Taps
from mmspec.target import Target

NEW_TOKENS = 12
# PaliGemma's prompt sees all of itself: one forward over prompt and text says something else.
VISION = [f.name for f in FAMILIES.values() if f.kind == "vision" and f.name != "paligemma"]


def engine_of(
    family: str, drafter: Listener, *, chunk: int | None = None, stores: bool = False, **decode: Any
) -> Engine:
    config = Config(
        decode=DecodeConfig(controller="fixed", max_nodes=12, prefill_chunk=chunk, **decode),
        cache=CacheConfig() if stores else CacheConfig(prefix_bytes=0, feature_bytes=0),
    )
    return mmspec.load(model_of(family, "float64"), config=config, drafter=[drafter])


def requests_of(family: str, layout: str, lengths: tuple[int, ...] = (30,)) -> list[Request]:
    return [
        Request(
            prompt_inputs(FAMILIES[family], layout, num_text_tokens=n, seed=n),  # type: ignore[arg-type]
            max_new_tokens=NEW_TOKENS,
            temperature=0.0,
        )
        for n in lengths
    ]


def plain(family: str, requests: list[Request]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Prompt tokens -> what plain decoding says."""
    engine = mmspec.load(model_of(family, "float64"), drafter="none")
    return {ids_of(request): engine.generate(request).tokens for request in requests}


def ids_of(request: Request) -> tuple[int, ...]:
    assert isinstance(request.prompt, Mapping)
    return tuple(request.prompt["input_ids"][0].tolist())


def assert_heard(
    family: str, listener: Listener, request: Request, text: tuple[int, ...], *, prompt: int = 1
) -> None:
    """What was heard of the request is what the model says by itself; of the prompt, its last
    `prompt` tokens'."""
    heard, seq = listener.heard[ids_of(request)], len(ids_of(request))
    # To the model by itself a placeholder in the text is one image more: up to there.
    end = next((n for n, token in enumerate(text) if token >= FIRST_MEDIA_TOKEN), len(text))
    expected = native(family, request, text[:end])
    assert heard.prompt.keys() == listener.taps.layers
    assert heard.steps, "no step was heard"
    for layer in listener.taps.layers:
        got = heard.prompt[layer]
        assert got.shape == (prompt, expected[layer].shape[1])
        assert_close(got, expected[layer][seq - prompt : seq], f"layer {layer}, prompt")
        for index, states in heard.steps:
            own = expected[layer][index : index + len(states[layer])]
            if len(own):
                got = states[layer][: len(own)]
                assert_close(got, own, f"layer {layer}, from token {index} on")


def assert_close(got: Tensor, expected: Tensor, what: str) -> None:
    error = float((got - expected).abs().max())
    assert error < 1e-5, f"{what}: off by {error:.2g}"  # some families round to float32 within


@pytest.mark.parametrize(
    ("family", "layout"),
    [(f.name, "text") for f in FAMILIES.values() if f.kind == "text"]
    + [(name, "image_middle") for name in VISION],
)
def test_a_drafter_hears_what_the_model_says_by_itself(family: str, layout: str) -> None:
    last = model_of(family, "float64").config.get_text_config(decoder=True).num_hidden_layers
    requests = requests_of(family, layout)
    truths = plain(family, requests)
    listener = Listener((last, last - 1), Adversary(truths, 112))
    result = engine_of(family, listener).generate(requests[0])
    assert result.tokens == truths[ids_of(requests[0])]
    assert result.stats.tokens_per_step > 1, "no draft was accepted: only node 0 was heard"
    if family != "qwen3_vl":  # its deepstack features come in behind the layer before
        assert_heard(family, listener, requests[0], result.tokens)
    else:
        listener.taps = Taps(frozenset([last]))
        heard = listener.heard[ids_of(requests[0])]
        heard.prompt = {last: heard.prompt[last]}
        assert_heard(family, listener, requests[0], result.tokens)


@pytest.mark.parametrize("attention", ["auto", "model"])
def test_rows_of_a_batch_hear_their_own(attention: str) -> None:
    requests = requests_of("llama", "text", (40, 17, 29))
    truths = plain("llama", requests)
    listener = Listener((0, 2), Adversary(truths, 112))
    engine = engine_of("llama", listener, attention=attention, max_rows=2)
    for request, result in zip(requests, engine.generate(requests), strict=True):
        assert result.stats.tokens_per_step > 1
        assert_heard("llama", listener, request, result.tokens)


@pytest.mark.parametrize(("family", "layout"), [("llama", "text"), ("qwen2_vl", "image_middle")])
@pytest.mark.parametrize("whole_prompt", [False, True])
def test_chunks_say_what_one_go_does(family: str, layout: str, whole_prompt: bool) -> None:
    requests = requests_of(family, layout)
    truths, num_tokens = plain(family, requests), len(ids_of(requests[0]))
    listener = Listener((1, 2), Adversary(truths, 112), whole_prompt=whole_prompt)
    result = engine_of(family, listener, chunk=7).generate(requests[0])
    prompt = num_tokens if whole_prompt else 1
    assert_heard(family, listener, requests[0], result.tokens, prompt=prompt)


@pytest.mark.parametrize("whole_prompt", [False, True])
def test_what_was_reused_has_no_hidden_states(whole_prompt: bool) -> None:
    requests = requests_of("llama", "text")
    truths = plain("llama", requests)
    listener = Listener((2,), Adversary(truths, 112), whole_prompt=whole_prompt)
    engine = engine_of("llama", listener, stores=True)
    engine.generate(requests[0])
    again = engine.generate(requests[0])
    assert 0 < again.stats.reused_tokens < 30
    prompt = 30 - again.stats.reused_tokens if whole_prompt else 1
    assert_heard("llama", listener, requests[0], again.tokens, prompt=prompt)


def test_custom_generate_hears_too() -> None:
    request = requests_of("llama", "text")[0]
    truths = plain("llama", [request])
    listener = Listener((2,), Adversary(truths, 112))
    model = model_of("llama", "float64")
    model.generate(
        torch.tensor([ids_of(request)]),
        generation_config=GenerationConfig(max_new_tokens=NEW_TOKENS, pad_token_id=0),
        custom_generate=mmspec.custom_generate,
        drafter=listener,
    )
    assert_heard("llama", listener, request, truths[ids_of(request)])


@pytest.mark.drafter_fails
def test_nobody_asks_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor for a request without speculation, nor once the drafter that asked has failed."""
    request = requests_of("llama", "text")[0]
    truths = plain("llama", [request])
    asked: list[object] = []
    model = model_of("llama", "float64")
    forward = type(model).forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs["output_hidden_states"])
        return forward(self, *args, **kwargs)

    listener = Listener((2,), Adversary(truths, 112))
    listening = engine_of("llama", listener)
    deaf = mmspec.load(model, drafter=[Adversary(truths, 112)])
    monkeypatch.setattr(type(model), "forward", counted)
    deaf.generate(request)
    listening.generate(request, speculate=False)
    assert asked and not any(asked)
    asked.clear()
    listening.generate(request)
    assert asked and all(asked)
    asked.clear()
    monkeypatch.setattr(Listener, "start", lambda self, prompt, prefill, guide: 1 / 0)
    listening.generate(request)
    assert asked[0] and not any(asked[1:])


def test_a_prompt_s_other_states_are_not_kept() -> None:
    """The last token's alone, and no view that would keep the rest alive."""
    request = requests_of("llama", "text")[0]
    listener = Listener((2,), Adversary(plain("llama", [request]), 112))
    engine_of("llama", listener).generate(request)
    (state,) = listener.heard[ids_of(request)].prompt.values()
    assert state.untyped_storage().nbytes() == state.nbytes


def test_a_layer_that_is_passed_over_hands_on_what_it_got() -> None:
    """As Mllama's second of three in a text without images: its model tells of the others alone."""
    target, ids = Target(model_of("mllama", "float64")), torch.tensor([3, 4, 5])
    with torch.no_grad():
        states = target.model(input_ids=ids[None], output_hidden_states=True).hidden_states
    cache = target.new_cache()
    heard = target.prefill(Prompt(ids), cache, cache.open(8), taps=range(4)).hidden
    assert len(states) == 3
    for layer, place in enumerate((0, 1, 1, 2)):
        assert_close(heard[layer], states[place][0], f"layer {layer}")


def test_taps_join() -> None:
    joined = Taps(frozenset([1])) | Taps(frozenset([1, 3]), whole_prompt=True)
    assert joined == Taps(frozenset([1, 3]), whole_prompt=True)


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_that_is_not_there_is_refused(layer: int) -> None:
    with pytest.raises(ConfigError, match=r"expected 0 \(the embedding\) to 2"):
        engine_of("llama", Listener((layer,), Adversary({}, 112)))
