"""A predicted answer: drafted from, from the first token on, and never read."""

import pytest
from PIL import Image

import mmspec
from mmspec.errors import InputError
from mmspec.training.tiny.build import build_model, build_processor

SAMPLED = {"seed": 5, "temperature": 1.0, "max_new_tokens": 32, "ignore_eos": True}


@pytest.fixture(scope="module")
def engine() -> mmspec.Engine:
    """What it says is noise: nothing in its prompt or its earlier words foretells it."""
    return mmspec.load(
        build_model("nano").double().eval(),
        build_processor(),
        overrides={"decode.controller": "fixed"},
    )


def test_a_right_prediction_is_taken_at_once_and_changes_nothing(engine: mmspec.Engine) -> None:
    plain = engine.generate("Say something.", reuse=False, **SAMPLED)
    helped = engine.generate("Say something.", reuse=False, prediction=plain.text, **SAMPLED)
    assert helped.tokens == plain.tokens
    assert plain.stats.steps > 25
    assert helped.stats.prompt_tokens == plain.stats.prompt_tokens, "the target does not read it"


def test_the_first_step_copies_the_prediction_s_beginning(engine: mmspec.Engine) -> None:
    words = "abcdefgh ijklmnop"
    forced = {"max_new_tokens": len(words), "temperature": 0, "reuse": False}
    only = {"prefix_allowed_tokens_fn": spelling(engine, words)}
    plain = engine.generate("Say something.", **forced, **only)
    assert plain.text == words
    helped = engine.generate("Say something.", prediction=words, **forced, **only)
    assert helped.text == words
    assert plain.stats.steps == len(words) - 1
    assert helped.stats.steps <= 3 and min(helped.stats.accepted_lengths) > 1


def test_a_wrong_prediction_changes_nothing(engine: mmspec.Engine) -> None:
    asked = {"images": Image.new("RGB", (32, 32), "blue"), "reuse": False, **SAMPLED}
    plain = engine.generate("Say something.", **asked)
    for wrong in ("", "<image> <|end|>", "something else, all of it", plain.text[8:]):
        helped = engine.generate("Say something.", prediction=wrong, **asked)
        assert helped.tokens == plain.tokens, wrong


def test_what_is_prepared_gives_the_same_text_and_keeps_the_prediction(
    engine: mmspec.Engine,
) -> None:
    plain = engine.generate("Say something.", **SAMPLED)
    prepared = engine.prepare(
        "Say something.", prediction=plain.text, passages=[mmspec.Passage("abc", in_prompt=False)],
        **SAMPLED,
    )  # fmt: skip
    assert isinstance(prepared.prompt, mmspec.state.Prompt)
    assert len(prepared.prompt.draft_texts) == 3  # the passage behind each seam, the prediction
    assert engine.prepare(prepared).prompt.draft_texts == prepared.prompt.draft_texts
    assert engine.generate(prepared).tokens == plain.tokens


def test_a_prediction_is_a_text(engine: mmspec.Engine) -> None:
    with pytest.raises(InputError, match=r"prediction=\['a'\]: expected the answer"):
        engine.generate("Say something.", prediction=["a"])
    with pytest.raises(InputError, match="got a prediction"):
        mmspec.load(engine.target.model).generate(
            {"input_ids": engine.prepare("a").prompt.token_ids[None]}, prediction="a"
        )


def spelling(engine: mmspec.Engine, words: str) -> object:
    """Allows the words alone, letter by letter."""
    letters = engine.tokenizer(words, add_special_tokens=False).input_ids
    start = engine.prepare("Say something.").prompt.num_tokens
    return lambda _, ids: [letters[ids.shape[0] - start]]
