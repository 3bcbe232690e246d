"""Reading: how one request's answers are read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

from transformers import LogitsProcessor

from mmspec.inputs import InputProcessor
from mmspec.inputs.template import REASONING
from mmspec.reading.calls import ToolCall
from mmspec.reading.form import Form, form_of, special_strings
from mmspec.reading.reader import AnswerReader, Part, Reasoning
from mmspec.requests import Request, Result
from mmspec.state import Prompt
from mmspec.stream import Detokenizer, TextStream, build_detokenizer


class Thought(NamedTuple):
    """The tokens round a reasoning; no opening: the prompt has opened it."""

    opening: Sequence[int]
    closing: Sequence[int]
    end: str  # the closing's first token, which ends a reasoning that spells it out too


@runtime_checkable
class Guide(Protocol):
    """A logits processor whose answers follow a grammar from their first token on."""

    def behind(self, thought: Thought) -> LogitsProcessor:
        """One whose grammar begins behind the reasoning, where there is any."""


@dataclass(frozen=True)
class Answer:
    """One sample's, in its parts."""

    result: Result  # the sample that was read, marks and all
    text: str
    reasoning: str = ""
    calls: Sequence[ToolCall] = ()
    reasoning_tokens: int = 0  # those whose text begins in the reasoning, its marks not counted

    @property
    def parts(self) -> dict[str, str]:
        """For a record, beside the text as it was decoded: reasoning and answer, where any was."""
        return {"reasoning": self.reasoning, "answer": self.text} if self.reasoning else {}


class Reading:
    """By the form of the model. Where an answer follows a grammar, that begins behind the
    reasoning; where it cannot, the answer has none. A prompt that went through no chat template has
    an answer of no form."""

    def __init__(self, inputs: InputProcessor | None, request: Request) -> None:
        """`request`: prepared (`engine.prepare`). Raises InputError for a grammar that cannot be
        followed."""
        self._tools = tuple(request.tools or ())
        self._tokenizer = inputs.tokenizer if inputs is not None else None
        self._form, self._beginning = form_of(None, has_tools=bool(self._tools)), ""
        if inputs is not None and not request.raw:
            source = inputs.template_source(request.template_arguments, request.tools)
            form = form_of(inputs.tokenizer, source, has_tools=bool(self._tools))
            request = self._formed(request, form, inputs)
        self._unseen: Sequence[str] = ()
        if self._form.shows_special and request.skip_special_tokens:
            assert inputs is not None
            self._unseen = special_strings(inputs.tokenizer)
            request = replace(request, skip_special_tokens=False)
        self.request = request  # what is to be decoded

    @property
    def may_reason(self) -> bool:
        """Whether answers of this form may have any reasoning."""
        return any(name in REASONING for name in self._form.template.fields)

    def reader(self) -> AnswerReader:
        """For one sample."""
        return AnswerReader(self._form, self._tools, beginning=self._beginning, unseen=self._unseen)

    def answer(self, sample: Result) -> Answer:
        """Of a sample of `request`."""
        reader = self.reader()
        return self.answer_of(sample, reader, reader.parts(sample.text, is_last=True))

    def answer_of(self, sample: Result, reader: AnswerReader, parts: Sequence[Part]) -> Answer:
        """Of a sample that `reader` has read to its end: `parts` are all that it told."""
        said = "".join(part for part in parts if isinstance(part, str))
        return Answer(
            sample,
            said.strip() if reader.calls else said,
            "".join(part.text for part in parts if isinstance(part, Reasoning)),
            reader.calls,
            self.num_thought(sample, reader),
        )

    def num_thought(self, sample: Result, reader: AnswerReader) -> int:
        """Tokens of the reasoning of a sample that `reader` has read to its end."""
        spans = reader.reasoning_spans
        if not spans:
            return 0
        detokenizer, place, count = self._detokenizer, 0, 0
        for token in sample.tokens:
            count += any(place in span for span in spans)
            place += len(detokenizer.push(token))
        return count

    def answer_of_tokens(self, sample: Result) -> Answer:
        """Of a sample whose text was decoded as the request was given, perhaps without marks."""
        text = TextStream(self._detokenizer, self.request.stop)
        for token in sample.tokens:
            if not text.is_stopped:
                text.push(token)
        text.finish()
        return self.answer(replace(sample, text="".join(told for told, _ in text.take())))

    def _formed(self, request: Request, form: Form, inputs: InputProcessor) -> Request:
        """The request for answers of this form, where it can have them."""
        beginning = ""
        if isinstance(request.prompt, Prompt):
            text = request.prompt.text  # of a prompt that came as tokens there is none
            if text is None:
                text = inputs.tokenizer.decode(request.prompt.token_ids)
            beginning = form.beginning(text)
        processors = request.logits_processors
        if any(isinstance(one, Guide) for one in processors):
            thought = _tokens_around(form, inputs)
            if thought is None:
                return request
            reader = AnswerReader(form, beginning=beginning)
            may_reason, next_parts = reader.may_reason, reader.parts("x")
            if next_parts == [Reasoning("x")]:
                may_reason, thought = True, thought._replace(opening=())
            if may_reason:
                guides = (p.behind(thought) if isinstance(p, Guide) else p for p in processors)
                processors = list(guides)
        self._form, self._beginning = form, beginning
        return replace(request, logits_processors=processors)

    @property
    def _detokenizer(self) -> Detokenizer:
        skips = self.request.skip_special_tokens
        return build_detokenizer(self._tokenizer, skip_special_tokens=skips)


def _tokens_around(form: Form, inputs: InputProcessor) -> Thought | None:
    """The marks of the form's reasoning, where they are made of tokens that no other text has."""
    if form.thought is None:
        return None
    opening, closing = map(inputs.mark_tokens, form.thought)
    ends = [text for text, i in inputs.tokenizer.get_added_vocab().items() if i == closing[0]]
    return Thought(opening, closing, ends[0]) if ends else None
