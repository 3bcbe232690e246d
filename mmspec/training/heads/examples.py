"""Lessons -> examples: token ids, and which of them are learned."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from mmspec.errors import InputError, MmspecError
from mmspec.inputs import InputProcessor
from mmspec.inputs.messages import Message, build_conversation, check_text
from mmspec.requests import Request
from mmspec.state import MediaKind, Prompt
from mmspec.training.heads.lessons import Lesson, text_of
from mmspec.words import counted

Learn = Literal["answers", "all"]
_LEAST_TOKENS = 4  # a draft needs a token that is known, one that was chosen, and one to say


@dataclass(frozen=True)
class Example:
    """A text as tokens. Pictures are not kept: `request` is processed again when it is read."""

    id: str
    tokens: NDArray[np.int64]  # (seq,)
    learned: NDArray[np.bool_]  # (seq,) whether a head shall be able to say this token
    num_before: int  # tokens of the prompt, which the target prefills; 0: a text by itself
    request: Request | None = None  # of a prompt with images

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_learned(self) -> int:
        """Tokens that are drafted: those before have nothing to be drafted from."""
        return int(self.learned[2:].sum())


class ExampleMaker:
    """Tokenises lessons by the model's own processor and chat template.

    An answer's tokens are those of its text alone, behind the prompt's, as generation puts them
    there; behind an answer that was given comes the token that ends a turn.
    """

    def __init__(
        self,
        inputs: InputProcessor,
        *,
        eos_token_ids: frozenset[int],
        max_tokens: int,
        learn: Learn = "answers",
    ) -> None:
        """Of each text the first `max_tokens` are learned from; a document is cut into as many
        parts as it takes. `learn` "all": prompts too, but no image's placeholders."""
        self._inputs = inputs
        self._eos = eos_token_ids
        self._max_tokens = max_tokens
        self._learns_all = learn == "all"
        self._end = self._find_end()

    def make(self, lesson: Lesson, answers: Mapping[str, Sequence[int]]) -> Iterator[Example]:
        """The examples of one lesson; `answers` are the target's own, by lesson. Raises InputError
        where it cannot be read, or leaves nothing to learn."""
        if lesson.text is not None:
            yield from self._texts(lesson)
            return
        request = lesson.request
        assert request is not None
        prompt = encoded(self._inputs, request)
        if lesson.id in answers:
            said = list(answers[lesson.id])
        elif lesson.answer is not None:
            said = [*self._tokens(lesson.answer), *self._end]
        else:
            raise InputError("has no answer")
        tokens = np.array([*prompt.token_ids.tolist(), *said], np.int64)
        learned = np.zeros(len(tokens), np.bool_)
        learned[prompt.num_tokens :] = True
        for start, stop in self._earlier_answers(request, prompt):
            learned[start:stop] = True
        if self._learns_all:
            learned[:] = True
            for span in prompt.media:
                learned[span.start : span.stop] = False
        kept = request if prompt.images or prompt.media else None
        yield self._cut(Example(lesson.id, tokens, learned, prompt.num_tokens, kept))

    def _texts(self, lesson: Lesson) -> Iterator[Example]:
        """A document's parts, each as long as may be."""
        assert lesson.text is not None
        tokens = np.array(self._tokens(lesson.text), np.int64)
        bos = self._inputs.tokenizer.bos_token_id
        lead = [] if bos is None else [bos]
        size = self._max_tokens - len(lead)
        parts = [tokens[start : start + size] for start in range(0, len(tokens), size)]
        found = [part for part in parts if len(part) >= _LEAST_TOKENS]
        if not found:
            raise InputError(f"holds {counted(len(tokens), 'token')}; expected {_LEAST_TOKENS}")
        for number, part in enumerate(found):
            name = lesson.id if len(found) == 1 else f"{lesson.id}#{number}"
            whole = np.concatenate([np.array(lead, np.int64), part])
            yield Example(name, whole, np.ones(len(whole), np.bool_), num_before=0)

    def _cut(self, example: Example) -> Example:
        size = self._max_tokens
        if example.request is not None and example.num_before > size:
            raise InputError(
                f"its prompt with images has {example.num_before} tokens; expected "
                f"train.max_tokens={size} at most"
            )
        cut = replace(
            example,
            tokens=example.tokens[:size],
            learned=example.learned[:size],
            num_before=min(example.num_before, size),
        )
        if not cut.num_learned:
            raise InputError(
                f"nothing to learn within the first train.max_tokens={size} of its "
                f"{example.num_tokens} tokens ({example.num_before} of them the prompt's)"
            )
        return cut

    def _earlier_answers(self, request: Request, prompt: Prompt) -> Iterator[tuple[int, int]]:
        """Where earlier turns of the assistant stand in the prompt, where its template leaves them
        as they are."""
        if isinstance(request.prompt, str | Mapping | Prompt):
            return
        tokens = prompt.token_ids.numpy()
        chat = build_conversation(
            request.prompt,
            images=request.images,
            videos=request.videos,
            audio=request.audio,
            system=request.system,
        )
        for place, message in enumerate(chat.messages):
            said, before = text_of(message), chat.messages[:place]
            is_asked = any(other["role"] != "system" for other in before)
            if message["role"] != "assistant" or not is_asked or not said:
                continue
            if before[-1]["role"] == "assistant":  # it goes on: no token has ended that turn
                continue
            asked = self._inputs.encode(
                before,
                images=chat.images[: _count(before, "image")],
                videos=chat.videos[: _count(before, "video")],
                audio=chat.audio[: _count(before, "audio")],
            ).token_ids
            answer = np.array(self._tokens(said), np.int64)
            start, stop = len(asked), len(asked) + len(answer)
            if np.array_equal(tokens[:start], asked) and np.array_equal(tokens[start:stop], answer):
                has_end = stop < len(tokens) and int(tokens[stop]) in self._eos
                yield start, stop + has_end

    def _tokens(self, text: str) -> list[int]:
        """Of a text alone; what looks like a control token in it is text. Raises InputError."""
        found = self._inputs.tokenizer(
            check_text(text), add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        return list(found["input_ids"])

    def _find_end(self) -> list[int]:
        """What the chat template puts behind an answer, if it ends a text for the target too."""
        turns: list[Message] = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": "Hi"},
        ]
        own = self._inputs.tokenizer.eos_token_id
        default = [own] if isinstance(own, int) and own in self._eos else sorted(self._eos)[:1]
        try:
            begun = self._inputs.encode(turns[:2]).token_ids
            whole = self._inputs.encode(turns).token_ids
        except InputError:
            return default
        is_prefix = np.array_equal(whole[: len(begun)], begun)
        behind = whole[len(begun) : len(begun) + 1].tolist() if is_prefix else []
        return behind if behind and behind[0] in self._eos else default


def encoded(inputs: InputProcessor, request: Request) -> Prompt:
    """A lesson's request as a prompt. Raises InputError."""
    assert isinstance(request.prompt, str) or not isinstance(request.prompt, Mapping | Prompt)
    return inputs.encode(
        request.prompt,
        images=request.images,
        videos=request.videos,
        audio=request.audio,
        system=request.system,
        passages=request.passages,
        passage_template=request.passage_template,
    )


def _count(messages: Sequence[Message], kind: MediaKind) -> int:
    """Media of a kind in messages of a Conversation."""
    return sum(
        part["type"] == kind
        for message in messages
        for part in cast(Sequence[Message], message["content"])
    )


def make_examples(
    lessons: Iterable[Lesson],
    maker: ExampleMaker,
    answers: Mapping[str, Sequence[int]],
    *,
    on_broken: Callable[[MmspecError], None],
) -> list[Example]:
    """All examples, in order. `on_broken` is told of each lesson that gives none."""
    examples: list[Example] = []
    for lesson in lessons:
        try:
            examples += maker.make(lesson, answers)
        except (InputError, OSError) as error:  # a disk that fails costs no other lesson either
            on_broken(InputError(f"{lesson.id}: {error}"))
    return examples
