"""How one request's answers are read: of an engine, and by what the request itself asks for."""

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import transformers
from integrations.frameworks import ADD, CALL, THINKING_TEMPLATE, TOOL_TEMPLATE, saying
from torch import Tensor
from transformers import LogitsProcessor

import mmspec
from mmspec.integrations.guided import GrammarProcessor, JsonGuide
from mmspec.reading import Reading, regions
from mmspec.reading.reading import Thought

from .families import FAMILIES, reader_of, thinking_engine, told

HARMONY_TEMPLATE = THINKING_TEMPLATE + "{# <|channel|> #}"
ANSWER = (
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Well."
    "<|start|>"
)


@pytest.fixture(scope="module")
def thinker() -> mmspec.Engine:
    return thinking_engine()


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


def test_an_engine_answers_in_parts(thinker: mmspec.Engine) -> None:
    answer = thinker.answer("Hi", **options(thinker, ANSWER))
    assert (answer.reasoning, answer.text, answer.calls) == ("Hm.", "Well.", [])
    assert answer.result is not None and answer.result.finish_reason == "eos"
    assert answer.reasoning_tokens == len("Hm.")


def test_of_a_processed_prompt_too(thinker: mmspec.Engine) -> None:
    """Its tools and template say how the answer is read."""
    asked = {**options(thinker, f"Well.{CALL}"), "tools": [ADD]}
    asked["template_arguments"] = {"chat_template": THINKING_TEMPLATE}
    prompt = {"input_ids": thinker.prepare("Hi", **asked).prompt.token_ids[None]}
    answer = thinker.answer(prompt, **asked)
    assert answer.text == "Well." and [call.name for call in answer.calls] == ["add"]


def test_a_processed_prompt_may_have_opened_the_reasoning(thinker: mmspec.Engine) -> None:
    opened = THINKING_TEMPLATE.replace("<|assistant|>{% endif", "<|assistant|><think>\n{% endif")
    asked = options(thinker, "<think>\nHm.</think>Well.")  # the prompt says the first of it
    asked["template_arguments"] = {"chat_template": opened + "{# </think> #}"}
    prompt = {"input_ids": thinker.prepare("Hi", **asked).prompt.token_ids[None]}
    answer = thinker.answer(prompt, **asked)
    assert (answer.reasoning, answer.text) == ("Hm.", "Well.")


def test_a_streamed_answer_stays_as_it_was_read(thinker: mmspec.Engine) -> None:
    """A call that has no id of its own keeps the one that it was given."""
    asked = {**options(thinker, f"Well.{CALL}"), "tools": [ADD]}
    asked["template_arguments"] = {"chat_template": THINKING_TEMPLATE}
    pieces = thinker.stream_answer("Hi", **asked)
    assert "".join(map(str, pieces)) == "Well."
    (call,) = pieces.answer.calls
    assert [call.id] == [one.id for one in pieces.answer.calls]


class Grammar(LogitsProcessor):
    """Follows none, but is asked for what a grammar is asked for."""

    def __init__(self) -> None:
        self.thoughts: list[Thought] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores

    def behind(self, thought: Thought) -> "Grammar":
        self.thoughts.append(thought)
        return self


def test_a_raw_prompt_has_an_answer_of_no_form(thinker: mmspec.Engine) -> None:
    arguments = {"chat_template": HARMONY_TEMPLATE}
    for raw in (False, True):
        request = replace(thinker.prepare("Hi", raw=raw), template_arguments=arguments)
        assert Reading(thinker.inputs, request).may_reason != raw


def test_calls_of_a_model_that_never_thinks_are_read_in_its_form(thinker: mmspec.Engine) -> None:
    asked = {**options(thinker, 'Well.[TOOL_CALLS]add[ARGS]{"a": 1}'), "tools": [ADD]}
    asked["template_arguments"] = {"chat_template": f"{TOOL_TEMPLATE}{{# [TOOL_CALLS] #}}"}
    answer = thinker.answer("Hi", **asked)
    assert answer.text == "Well." and [call.name for call in answer.calls] == ["add"]


@pytest.mark.parametrize(("begun", "num_marks"), [("", [1]), ("<think>\n", [0]), ("</think>", [])])
def test_a_grammar_is_told_of_the_reasoning_that_the_prompt_leaves_to_come(
    thinker: mmspec.Engine, begun: str, num_marks: list[int]
) -> None:
    template = THINKING_TEMPLATE.replace("<|assistant|>{% endif", f"<|assistant|>{begun}{{% endif")
    grammar, arguments = Grammar(), {"chat_template": template + "{# </think> #}"}
    request = thinker.prepare("Hi", template_arguments=arguments, logits_processors=[grammar])
    Reading(thinker.inputs, request)
    assert [len(one.opening) > 0 for one in grammar.thoughts] == num_marks


def test_marks_are_tokenised_by_one_thread_at_a_time(
    thinker: mmspec.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others tokenise their prompts meanwhile, and a fast tokenizer is changed by that."""
    grammar, inputs, were_locked = Grammar(), thinker.inputs, list[bool]()
    assert inputs is not None
    request = thinker.prepare("Hi", **options(thinker, ANSWER), logits_processors=[grammar])
    tokenise = type(inputs.tokenizer).__call__

    def watched(tokenizer: Any, *args: Any, **kwargs: Any) -> Any:
        were_locked.append(inputs._lock.locked())
        return tokenise(tokenizer, *args, **kwargs)

    monkeypatch.setattr(type(inputs.tokenizer), "__call__", watched)
    Reading(inputs, request)
    assert grammar.thoughts and were_locked and all(were_locked)


def test_a_chat_takes_an_answer_that_a_grammar_made_as_it_stands(thinker: mmspec.Engine) -> None:
    """Also where the prompt has opened the reasoning; and no grammar is compiled for it again."""
    grammar = Grammar()
    opened = THINKING_TEMPLATE.replace("<|assistant|>{% endif", "<|assistant|><think>\n{% endif")
    made = options(thinker, '<think>\n{"a": 1}')  # the prompt says the first of it
    made["template_arguments"] = {"chat_template": opened + "{# </think> #}"}
    chat = thinker.chat(**made, logits_processors=[grammar])
    chat.send("Hi")
    content = [{"type": "text", "text": '{"a": 1}'}]
    assert chat.messages[-1] == {"role": "assistant", "content": content}
    assert not grammar.thoughts


@pytest.mark.parametrize("name", ["_accumulate", "_close_current", "_buffer"])
def test_another_parser_than_the_known_one_is_told_and_leaves_answers_whole(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a later transformers may have it: where it calls one no more, text would be lost."""
    monkeypatch.setattr(regions, "Regions", _renamed(name))
    regions.is_as_known.cache_clear()
    try:
        family = FAMILIES["qwen3"]
        for _ in range(2):
            reader = reader_of(family)
            assert told(reader.parts(family.answer, is_last=True)) == [("text", family.answer)]
            assert not reader.may_reason and not reader.reasoning_spans
        assert caplog.text.count("stay text") == 1 and transformers.__version__ in caplog.text
    finally:
        regions.is_as_known.cache_clear()


def _renamed(name: str) -> type:
    class Renamed(regions.Regions):
        """Where the parser itself calls that no more."""

    if name == "_buffer":
        setattr(Renamed, name, property(lambda self: "", lambda self, text: None))
    else:
        setattr(Renamed, name, getattr(regions.ResponseParser, name))
    return Renamed


@pytest.mark.skipif(not find_spec("llguidance"), reason="needs the extra 'guided'")
def test_a_reasoning_cannot_spell_out_its_end_nor_end_the_answer(thinker: mmspec.Engine) -> None:
    """Its text would be read as the answer, which the grammar has not begun."""
    assert thinker.inputs is not None and thinker.tokenizer is not None
    guide = JsonGuide(thinker).matching({"type": "object", "properties": {}})
    opened = THINKING_TEMPLATE.replace("<|assistant|>{% endif", "<|assistant|><think>\n{% endif")
    arguments = {"chat_template": opened + "{# </think> #}"}
    request = thinker.prepare("Hi", template_arguments=arguments, logits_processors=[guide])
    (behind,) = Reading(thinker.inputs, request).request.logits_processors
    assert isinstance(behind, GrammarProcessor)
    ids = torch.tensor([thinker.inputs.mark_tokens("Hm, </thi")])
    rest = thinker.inputs.mark_tokens("nk>")
    for number, is_allowed in ((0, True), (1, True), (2, False)):
        said = torch.cat([ids, torch.tensor([rest[:number]], dtype=torch.long)], dim=1)
        scores = behind.for_request(0)(said, torch.zeros(1, len(thinker.tokenizer)))[0]
        assert bool(scores[rest[number]] == 0) == is_allowed
        assert scores[thinker.tokenizer.convert_tokens_to_ids("</think>")] == 0
        assert scores[thinker.tokenizer.eos_token_id].isinf()
