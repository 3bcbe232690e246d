"""The suite of a data folder: real meetings, speeches and prompts, as far as they are there.

    qmsum/*.jsonl         meetings: quoting, summarising, answering from passages
    state_union/*.txt     speeches: quoting, translating
    kv_lookup/*.jsonl     key-value pairs: looking one up
    prompts/humaneval.jsonl, gsm8k.jsonl, mt_bench.jsonl, others   code, maths, chat, open-ended

The first documents of each file are taken, in order, so that the prompts are the same each time.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmspec.bench.suites import Question, Task, question_of
from mmspec.errors import InputError
from mmspec.inputs.prompt_file import read_prompts
from mmspec.inputs.records import read_records

Named = Iterator[tuple[str, Question]]  # each with its task's name
_QUOTED_CHARS = 4000
_PARAGRAPHS = 4  # of a speech, to be translated
_PASSAGES = 6  # stretches of a meeting that an answer is sought in
_PASSAGE_TURNS = 12
_NEAR_PAIRS = 10  # on each side of the key that is looked up: all 75 are 5,000 tokens and more
_OPEN_ENDED = ("writing", "roleplay")  # categories of mt_bench
_PROMPT_TASKS = {"humaneval": "code", "gsm8k": "maths"}
_NEW_TOKENS = 128
_QUOTE_TOKENS = 200


def folder_tasks(folder: Path, num_questions: int) -> list[Task]:
    """`num_questions` of each task that the folder has prompts for. Raises InputError for a folder
    without any."""
    questions: dict[str, list[Question]] = {}
    for name, question in _questions(folder):
        questions.setdefault(name, []).append(question)
    if not questions:
        raise InputError(
            f"{folder}: no prompts found; expected a folder with qmsum/*.jsonl, state_union/*.txt, "
            "kv_lookup/*.jsonl or prompts/*.jsonl"
        )
    return [
        Task(name, tuple(found[:num_questions]), _QUOTE_TOKENS if "quot" in name else _NEW_TOKENS)
        for name, found in questions.items()
    ]


def _questions(folder: Path) -> Named:
    for path in sorted(folder.glob("qmsum/*.jsonl")):
        yield from _of_records(path, _meeting_questions, "a meeting of QMSum")
    for path in sorted(folder.glob("state_union/*.txt")):
        yield from _speech_questions(path.read_text(encoding="utf-8", errors="replace"))
    for path in sorted(folder.glob("kv_lookup/*.jsonl")):
        yield from _of_records(path, _look_up, "a 'key' of 'ordered_kv_records'")
    for path in sorted(folder.glob("prompts/*.jsonl")):
        for prompt in read_prompts(path):
            name = _PROMPT_TASKS.get(path.stem, path.stem)
            if path.stem == "mt_bench":  # the first of its two turns
                name = "open-ended" if prompt.task in _OPEN_ENDED else "chat"
            yield name, question_of(prompt)


def _of_records(path: Path, questions: Callable[[Mapping[str, Any]], Named], what: str) -> Named:
    """The questions of each line. Raises InputError for a line that is not `what`."""
    for record in read_records(path):
        if record.error is not None:
            raise record.error
        try:
            yield from list(questions(record.values))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(
                f"{record.where}: got the keys {sorted(record.values)}; expected {what} "
                f"({type(error).__name__}: {error})"
            ) from error


def _look_up(row: Mapping[str, Any]) -> Named:
    records = row["ordered_kv_records"]
    asked = [key for key, _ in records].index(row["key"])
    near = records[max(asked - _NEAR_PAIRS, 0) : asked + _NEAR_PAIRS + 1]
    lead = "Extract the value of the given key from the JSON object below.\n\n"
    after = f'\n\nKey: "{row["key"]}"\nGive the key and its value.'
    yield "looking up", Question(lead, json.dumps(dict(near), indent=1), after)


def _meeting_questions(meeting: Mapping[str, Any]) -> Named:
    turns = [f"{turn['speaker']}: {turn['content']}" for turn in meeting["meeting_transcripts"]]
    transcript = "\n".join(turns)
    lead = "Repeat this transcript word by word.\n\n"
    yield "quoting", Question(lead, transcript[:_QUOTED_CHARS])
    for query in meeting["general_query_list"][:1]:
        lead = "This is the transcript of a meeting.\n\n"
        yield "summarising", Question(lead, transcript, f"\n\n{query['query']}")
    for query in meeting["specific_query_list"][:1]:
        passages = _passages(turns, query["relevant_text_span"])
        lead = "Answer the question from the passages, and quote the sentences that show it.\n\n"
        yield "answering from passages", Question(lead, passages, f"\n\nQuestion: {query['query']}")


def _passages(turns: list[str], spans: list[list[str]]) -> str:
    """Stretches of the meeting, the relevant ones and others from all over it, in order."""
    starts = {int(first) for first, _ in spans[: _PASSAGES // 2]}
    step = max(len(turns) // _PASSAGES, 1)
    starts |= set(range(0, len(turns), step)) if len(starts) < _PASSAGES else set()
    chosen = sorted(starts)[:_PASSAGES]
    texts = ["\n".join(turns[start : start + _PASSAGE_TURNS]) for start in chosen]
    return "\n\n".join(f"[{number}]\n{text}" for number, text in enumerate(texts, 1))


def _speech_questions(speech: str) -> Named:
    paragraphs = [" ".join(line.split()) for line in speech.splitlines() if len(line) > 200]
    quoted = "\n".join(paragraphs)[:_QUOTED_CHARS]
    if quoted:
        yield "quoting a speech", Question("Repeat this speech word by word.\n\n", quoted)
    for first in range(0, len(paragraphs) - _PARAGRAPHS, _PARAGRAPHS):
        text = "\n".join(paragraphs[first : first + _PARAGRAPHS])
        yield "translating", Question("Translate this text into French.\n\n", text)
