"""Suites: tasks with their prompts. A prompt that is too long is cut in its document."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from mmspec.errors import InputError
from mmspec.inputs import AudioSource, ImageSource, InputProcessor, Message, VideoSource
from mmspec.inputs.prompt_file import FilePrompt, read_prompts
from mmspec.state import Prompt
from mmspec.training.tiny.data import Sample, caption, quote, receipt, story

_SHORTER = 0.98  # the text's part that is kept is estimated from its tokens, a little too short


@dataclass(frozen=True)
class Question:
    """One prompt: a text in three parts, or chat messages. `document` is the part that may be cut
    (its end goes)."""

    before: str | Sequence[Message]
    document: str = ""
    after: str = ""
    images: tuple[ImageSource, ...] = ()
    videos: tuple[VideoSource, ...] = ()
    audio: tuple[AudioSource, ...] = ()

    def encode(self, inputs: InputProcessor, *, document: str | None = None) -> Prompt:
        prompt = self.before
        if isinstance(prompt, str):
            prompt = prompt + (self.document if document is None else document) + self.after
        return inputs.encode(prompt, images=self.images, videos=self.videos, audio=self.audio)


@dataclass(frozen=True)
class Task:
    """Questions of one kind."""

    name: str
    questions: tuple[Question, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class Fitted:
    """A question as the prompt that every method gets."""

    prompt: Prompt
    is_cut: bool


def fitted(question: Question, inputs: InputProcessor, room: int) -> Fitted | None:
    """The question in at most `room` tokens: where it is longer, its document loses its end. None
    if there is no document to cut."""
    prompt = question.encode(inputs)
    if prompt.num_tokens <= room:
        return Fitted(prompt, is_cut=False)
    if not question.document:
        return None
    bare = question.encode(inputs, document="").num_tokens
    document = question.document
    while prompt.num_tokens > room and document:
        share = max(room - bare, 0) / max(prompt.num_tokens - bare, 1)
        document = document[: int(len(document) * share * _SHORTER)]
        prompt = question.encode(inputs, document=document)
    return Fitted(prompt, is_cut=True) if document else None


def bundled_tasks(num_questions: int) -> list[Task]:
    """What the bundled model was trained for, on words that training never showed: transcribing
    with the text layer given, quoting, describing pictures, and open-ended stories."""

    def task(name: str, make: Callable[[Random], Sample], max_new_tokens: int) -> Task:
        samples = [make(Random(f"bench/{name}/{seed}")) for seed in range(num_questions)]
        questions = tuple(
            Question(s.prompt_text, images=() if s.image is None else (s.image,)) for s in samples
        )
        return Task(name, questions, max_new_tokens)

    return [
        task("transcribing, text layer given", lambda rng: receipt(rng, held_out=True), 400),
        task("quoting, 1k", lambda rng: quote(rng, held_out=True, num_chars=1000), 200),
        task("quoting, 4k", lambda rng: quote(rng, held_out=True, num_chars=4000), 200),
        task("describing", lambda rng: caption(rng, held_out=True), 300),
        task("open-ended", lambda rng: story(rng, held_out=True), 300),
    ]


def question_of(found: FilePrompt) -> Question:
    """What a file asks, with all that belongs to it."""
    return Question(found.prompt, images=found.images, videos=found.videos, audio=found.audio)


def file_tasks(path: Path, num_questions: int | None, max_new_tokens: int = 128) -> list[Task]:
    """The prompts of a user's own file, gathered by their `task`; `num_questions` of each, or all.

    Raises InputError.
    """
    tasks: dict[str, list[Question]] = {}
    for line in read_prompts(path):
        tasks.setdefault(line.task, []).append(question_of(line))
    return [
        Task(name, tuple(questions[:num_questions]), max_new_tokens)
        for name, questions in tasks.items()
    ]


def chosen_tasks(tasks: Sequence[Task], names: Sequence[str]) -> list[Task]:
    """Those of `tasks` that `names` name, all if it is empty; a name may be the beginning of a
    task's. Raises InputError for a name of none."""
    for name in names:
        if not any(task.name.startswith(name) for task in tasks):
            known = ", ".join(repr(task.name) for task in tasks)
            raise InputError(f"task {name!r}: expected one of {known}")
    return [task for task in tasks if not names or task.name.startswith(tuple(names))]
