"""How one request's answers are read: of an engine, and by what the request itself asks for."""

from typing import Any

import pytest
from integrations.frameworks import THINKING_TEMPLATE, saying
from tokenizers import AddedToken

import mmspec
from mmspec.reading import Reading
from mmspec.training.tiny.build import build_model, build_processor

from .families import HARMONY

HARMONY_TEMPLATE = THINKING_TEMPLATE + "{# <|channel|> #}"
ANSWER = (
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Well."
    "<|start|>"
)


@pytest.fixture(scope="module")
def thinker() -> mmspec.Engine:
    """With the marks of gpt-oss as special tokens."""
    model, processor = build_model("nano").double().eval(), build_processor()
    tokens = [AddedToken(one, special=True, normalized=False) for one in HARMONY]
    processor.tokenizer.add_tokens(tokens, special_tokens=True)
    model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    return mmspec.load(model, processor, overrides={"decode.controller": "fixed"})


def options(engine: mmspec.Engine, text: str) -> dict[str, Any]:
    made = saying(engine, text)
    made["max_new_tokens"] = made.pop("max_tokens")
    return {**made, "template_arguments": {"chat_template": HARMONY_TEMPLATE}}


@pytest.mark.parametrize("skips", [True, False])
def test_who_wants_special_tokens_sees_those_that_are_no_marks(
    thinker: mmspec.Engine, skips: bool
) -> None:
    asked = {**options(thinker, ANSWER), "skip_special_tokens": skips}
    reading = Reading(thinker.inputs, thinker.prepare("Hi", **asked))
    answer = reading.answer(thinker.generate(reading.request))
    assert answer.reasoning == "Hm."
    assert answer.text == ("Well." if skips else "Well.<|start|></s>")
