"""Tasks that copy from a text: quote from a ledger or a real text, continue a span, repeat."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from mmspec.training.tiny.sample import FollowUp, Sample, nowhere
from mmspec.training.tiny.words import GOODS, VERBS, Words, is_held_out


def ledger_entries(words: Words, num_chars: int) -> dict[str, str]:
    """Ledger entries by number; some numbers differ from an earlier one in one digit only."""
    rng = words.rng
    entries: dict[str, str] = {}
    length = 0
    while length < num_chars or len(entries) < 2:
        number = str(rng.randint(10000, 99999))
        if entries and rng.random() < 0.1:
            digits = list(rng.choice(list(entries)))
            digits[rng.randrange(1, 5)] = str(rng.randint(0, 9))
            number = "".join(digits)
        if number in entries:
            continue
        goods, count = words.thing(GOODS, 0.3), rng.randint(2, 99)
        text = f"{words.name()} {rng.choice(VERBS)} {count} {goods}"
        draw = rng.random()
        if draw < 0.6:
            text += f" to {words.name()}"
        if draw < 0.35:
            text += f" for {rng.randint(2, 999)} coins"
        elif draw > 0.75:
            text += f" in {words.name()}"
        if rng.random() < 0.25:
            text += f", {rng.choice(('paid', 'unpaid', 'half paid', 'to be checked'))}"
        entries[number] = f"Entry {number}: {text}."
        length += len(entries[number]) + 1
    return entries


@dataclass(frozen=True)
class _Question:
    """Asks for `answer`, whose first `key` characters end the question."""

    lead: str
    answer: str
    key: int

    @property
    def text(self) -> str:
        return self.lead + self.answer[: self.key]

    def source(self, end: int, start: int) -> tuple[int, ...]:
        """Where the answer's characters stand if the question ends at `end` and the answer stands
        in the document from `start` on."""
        rest = range(start + self.key, start + len(self.answer) + 1)
        return (*range(end - self.key, end), *rest)


def _ask(task: str, lines: Iterable[str], questions: Sequence[_Question]) -> Sample:
    """A sample with one or more questions about a document of `lines`."""
    document = "".join(line + "\n" for line in lines)
    first, *others = questions
    prompt = document + first.text
    starts = [document.index(question.answer) for question in questions]
    follow_ups = tuple(
        FollowUp(x.text, x.answer, x.source(len(prompt) + len(x.text), start))
        for x, start in zip(others, starts[1:], strict=True)
    )
    source = first.source(len(prompt), starts[0])
    answer = first.answer
    return Sample(task, prompt, answer, source, nowhere(answer), follow_ups=follow_ups)


def quote(
    rng: Random, held_out: bool = False, num_chars: int = 400, num_questions: int = 1
) -> Sample:
    """Quote one entry of a ledger of about `num_chars` characters."""
    entries = list(ledger_entries(Words(rng, held_out), num_chars).values())
    asked = [rng.choice(entries) for _ in range(num_questions)]
    key = len("Entry 12345")
    return _ask("quote", entries, [_Question("Quote ", entry, key) for entry in asked])


@cache
def _real_lines() -> tuple[list[str], list[str]]:
    """Lines of Python's own help topics: (training, held out)."""
    from pydoc_data.topics import topics

    lines = [
        " ".join(line.split())
        for name in sorted(topics)
        for line in topics[name].splitlines()
        if line.isascii()
    ]
    lines = [line for line in lines if 20 <= len(line) <= 100]
    return [x for x in lines if not is_held_out(x)], [x for x in lines if is_held_out(x)]


def _real_document(rng: Random, held_out: bool, num_chars: int) -> list[str]:
    """Neighbouring lines of real text, of about `num_chars` characters."""
    pool = _real_lines()[held_out]
    first = rng.randrange(len(pool))
    lines: list[str] = []
    length = 0
    while length < num_chars:
        lines.append(pool[(first + len(lines)) % len(pool)])
        length += len(lines[-1])
    return lines


def passage(
    rng: Random, held_out: bool = False, num_chars: int = 400, num_questions: int = 1
) -> Sample:
    """Quote the line of a real text that begins with the given words."""
    lines = _real_document(rng, held_out, num_chars)
    document = "\n".join(lines)
    pool = [line for line in lines if document.count(line[:14]) == 1] or lines[:1]
    questions = []
    for _ in range(num_questions):
        answer = rng.choice(pool)
        key = min(len(answer) - 1, rng.randint(14, 20))
        questions.append(_Question("Quote the line: ", answer, key))
    return _ask("passage", lines, questions)


def needle(
    rng: Random, held_out: bool = False, num_chars: int = 400, num_questions: int = 1
) -> Sample:
    """Quote an entry that stands alone in a real text, whose parts of one length have one each."""
    words = Words(rng, held_out)
    entries = list(ledger_entries(words, 100 * num_questions).values())[:num_questions]
    room = num_chars - sum(len(entry) + 1 for entry in entries)
    lines = _real_document(rng, held_out, room)
    while lines and sum(len(line) + 1 for line in lines) > room:
        lines.pop()
    each = len(lines) / num_questions
    for index in reversed(range(num_questions)):
        lines.insert(int(each * (index + rng.random())), entries[index])
    asked = rng.sample(entries, num_questions)
    key = len("Entry 12345")
    return _ask("needle", lines, [_Question("Quote ", entry, key) for entry in asked])


def span(
    rng: Random, held_out: bool = False, num_chars: int = 400, num_questions: int = 1
) -> Sample:
    """Take up some words from within a line and go on to the line's end."""
    if rng.random() < 0.5:
        lines = list(ledger_entries(Words(rng, held_out), num_chars).values())
    else:
        lines = _real_document(rng, held_out, num_chars)
    document = "\n".join(lines)
    questions: list[_Question] = []
    while len(questions) < num_questions:
        line = rng.choice(lines)
        key = min(len(line) - 2, rng.randint(14, 20))
        answer = line[rng.randint(1, len(line) - key - 1) :]
        if document.count(answer[:key]) == 1 and answer[0] != " ":
            questions.append(_Question("Continue: ", answer, key))
    return _ask("span", lines, questions)


def repeat(rng: Random, held_out: bool = False, num_chars: int = 96) -> Sample:
    """Repeat a random string: the plainest copying, from which the others grow."""
    alphabet = rng.sample([chr(code) for code in range(32, 127)], rng.randint(10, 90))
    answer = "".join(rng.choice(alphabet) for _ in range(rng.randint(16, num_chars)))
    lead = "Repeat: "
    prompt = lead + answer
    source = tuple(range(len(lead), len(prompt) + 1))
    return Sample("repeat", prompt, answer, source, nowhere(answer))
