"""Conversations and documents: what was said or seen before is computed once: counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

import mmspec
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.errors import InputError
from mmspec.training.tiny.build import build_model, build_processor

SAMPLED = {"temperature": 1.0, "top_k": 0, "max_new_tokens": 24, "ignore_eos": True}
NOTHING_KEPT = CacheConfig(prefix_bytes=0, feature_bytes=0)


def engine_of(config: Config | None = None) -> mmspec.Engine:
    torch.manual_seed(0)
    return mmspec.load(build_model("nano").double().eval(), build_processor(), config=config)


@pytest.fixture(scope="module")
def engine() -> mmspec.Engine:
    return engine_of()


def picture(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@dataclass
class Counted:
    """What went through the model."""

    tower_runs: int = 0
    tokens: int = 0


@contextmanager
def counted(engine: mmspec.Engine) -> Iterator[Counted]:
    """Counts runs of the vision tower and tokens through the first decoder layer within."""
    counts, model = Counted(), engine.target.model
    modules = dict(model.named_modules())
    tower = next(m for name, m in modules.items() if name.endswith("vision_tower"))
    layer = next(m for name, m in modules.items() if name.endswith("language_model.layers.0"))

    def run(*_: object) -> None:
        counts.tower_runs += 1

    def token(_: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        counts.tokens += (args[0] if args else kwargs["hidden_states"]).shape[1]

    hooks = [
        tower.register_forward_pre_hook(run),
        layer.register_forward_pre_hook(token, with_kwargs=True),
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def common(a: torch.Tensor, b: torch.Tensor) -> int:
    pairs = enumerate(zip(a.tolist(), b.tolist(), strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "in one batch"])
def test_ten_questions_about_one_image_and_one_document_read_both_once(together: bool) -> None:
    engine = engine_of()
    assert engine.inputs is not None
    document = " ".join(f"Line {n}: item {n * 37 % 101} is {n * 53 % 97}." for n in range(180))
    questions = [f"What is item {n * 11}?" for n in range(10)]
    content = [{"type": "image", "image": picture()}, {"type": "text", "text": document}]

    def messages(question: str) -> list[dict[str, object]]:
        return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]

    prompts = [engine.inputs.encode(messages(question)) for question in questions]
    shared = min(common(prompts[0].token_ids, other.token_ids) for other in prompts[1:])
    assert shared > 4000 + 256
    # One new token comes from the prefill itself: all that is counted is prompts.
    requests = [
        mmspec.Request(messages(question), max_new_tokens=1, temperature=0.0)
        for question in questions
    ]
    with counted(engine) as counts:
        results = engine.generate(requests) if together else [engine.generate(r) for r in requests]
    assert counts.tower_runs == 1
    questions_alone = sum(prompt.num_tokens - shared for prompt in prompts)
    assert counts.tokens <= shared + questions_alone
    assert counts.tokens == sum(p.num_tokens for p in prompts) - sum(
        r.stats.reused_tokens for r in results
    )
    assert sum(r.stats.encoded_media for r in results) == 1
    assert sum(r.stats.reused_media for r in results) == 9
    if not together:
        with counted(engine) as counts:
            anew = engine.generate(requests[9], reuse=False)
        assert anew.tokens == results[9].tokens
        assert counts.tower_runs == 1 and counts.tokens == prompts[9].num_tokens


def test_a_chat_says_what_the_same_messages_say_and_reads_them_once(
    engine: mmspec.Engine,
) -> None:
    engine.clear_cache()
    chat = engine.chat(system="Be brief.", images=picture(), **SAMPLED)
    said = 0
    with counted(engine) as counts:
        for turn, question in enumerate(("red square?", "blue circle?", "and then?")):
            images, before = picture(7) if turn == 1 else (), counts.tower_runs
            result = chat.send(question, images=images, seed=turn)
            runs = counts.tower_runs - before
            assert runs == (1, 3, 0)[turn], "each once; two are seen together and alone"
            assert result.stats.reused_tokens >= said
            assert not turn or result.stats.reused_tokens > 0.5 * result.stats.prompt_tokens - 256
            # All but the last token of the answer, whose KV was never needed; the text of random
            # tokens need not become the same tokens again, so the prompt alone is certain.
            said = result.stats.prompt_tokens - 8
            anew = engine.generate(chat.messages[:-1], seed=turn, reuse=False, **SAMPLED)
            assert anew.tokens == result.tokens
    roles = [message["role"] for message in chat.messages]
    assert roles == ["system", *["user", "assistant"] * 3]


def test_an_answer_that_is_text_is_found_again_to_its_last_token() -> None:
    engine = engine_of()
    letters = {token: 50.0 for token in range(70, 90)}  # printable bytes, one token each
    chat = engine.chat(temperature=1.0, top_k=0, max_new_tokens=20, logit_bias=letters)
    first = chat.send("Spell.", seed=1)
    second = chat.send("More.", seed=2)
    assert second.stats.reused_tokens == first.stats.prompt_tokens + len(first.tokens) - 1


def test_a_chat_without_stores_is_the_same_chat(engine: mmspec.Engine) -> None:
    config = Config(cache=NOTHING_KEPT, decode=DecodeConfig(prefill_chunk=None))
    plain = engine_of(config)
    answers = []
    for one in (engine, plain):
        chat = one.chat(images=[picture()], **SAMPLED)
        answers.append([chat.send(q, seed=3).tokens for q in ("red?", "blue?")])
    assert answers[0] == answers[1]
    assert plain.cache_info().prefixes.max_bytes == 0


def test_a_streamed_turn_joins_at_its_end_and_a_closed_one_with_what_there_is(
    engine: mmspec.Engine,
) -> None:
    chat = engine.chat(**SAMPLED)
    stream = chat.stream("red?", seed=1)
    assert chat.messages == []
    text = "".join(piece.text for piece in stream)
    assert chat.messages[-1] == {"role": "assistant", "content": [{"type": "text", "text": text}]}
    with chat.stream("blue?", seed=2) as stream:
        next(stream)
    assert len(chat.messages) == 4
    assert chat.messages[-1]["content"][0]["text"] == stream.result.text
    assert stream.result.finish_reason == "closed"
    unread = chat.stream("green?", seed=3)
    unread.close()
    assert len(chat.messages) == 4, "a question that was never read is none"


def test_a_turn_that_fails_leaves_the_conversation_as_it_was(engine: mmspec.Engine) -> None:
    chat = engine.chat(max_new_tokens=4)
    chat.send("red?")
    before = list(chat.messages)
    with pytest.raises(InputError):
        chat.send("and this?", images="no-such-file.png")
    with pytest.raises(InputError, match="did you mean 'temperature'"):
        chat.send("blue?", temprature=1.0)
    assert chat.messages == before
    assert chat.send("blue?").tokens


def test_what_is_kept_can_be_seen_and_forgotten(engine: mmspec.Engine) -> None:
    engine.clear_cache()
    engine.generate("red?", images=picture(), namespace="a", max_new_tokens=3)
    one = engine.cache_info()
    engine.generate("red?", images=picture(), namespace="b", max_new_tokens=3)
    two = engine.cache_info()
    assert one.prefixes.num_tokens > 256 and one.features.num_entries == 1
    assert two.prefixes.num_bytes > one.prefixes.num_bytes and two.features.num_entries == 2
    engine.clear_cache("b")
    assert engine.cache_info().features == one.features
    assert engine.cache_info().prefixes.num_tokens == one.prefixes.num_tokens
    engine.clear_cache()
    assert engine.cache_info().prefixes.num_bytes == engine.cache_info().features.num_bytes == 0


def test_a_wrong_option_is_told_when_the_chat_begins(engine: mmspec.Engine) -> None:
    with pytest.raises(InputError, match="did you mean"):
        engine.chat(max_new_token=3)
