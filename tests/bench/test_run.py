"""Order, warming up, cutting: with runners that only keep a diary."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from mmspec.bench.run import WARM_UP_TOKENS, measure, turns
from mmspec.bench.suites import Question, Task, chosen_tasks, fitted
from mmspec.bench.timeline import Moment, Run
from mmspec.errors import InputError
from mmspec.state import Prompt

NAMES = ("a", "b", "c", "d")


class Bytes:
    """A processor whose tokens are bytes."""

    def encode(
        self, prompt: str, *, images: object = (), videos: object = (), audio: object = ()
    ) -> Prompt:
        return Prompt(torch.tensor(list(prompt.encode())), text=prompt)


class Diary:
    """Says a fixed text; writes down what it was asked."""

    def __init__(self, name: str, text: tuple[int, ...], diary: list[tuple[str, str, int]]) -> None:
        self._name, self._text, self._diary = name, text, diary

    def run(self, prompt: Prompt, max_new_tokens: int) -> Run:
        self._diary.append((self._name, prompt.text or "", max_new_tokens))
        tokens = self._text[:max_new_tokens]
        return Run(tokens, 1, Moment(1, 1), Moment(2, 2), Moment(2, 2), len(tokens), 0)


class Refusing:
    def run(self, prompt: Prompt, max_new_tokens: int) -> Run:
        raise ValueError("assisted generate does not take this")


def test_methods_take_turns_within_a_prompt() -> None:
    order = list(turns(NAMES, 3, pair=0))
    assert [case for case, _ in order] == [0] * 4 + [1] * 4 + [2] * 4
    for case in range(3):
        assert {name for index, name in order if index == case} == set(NAMES)


def test_each_method_stands_at_each_place_and_after_each_other() -> None:
    """Over 7 pairs of 4 prompts: what warms or cools the machine meets all alike."""
    places: Counter[tuple[str, int]] = Counter()
    neighbours: Counter[tuple[str, str]] = Counter()
    for pair in range(7):
        order = list(turns(NAMES, 4, pair))
        for case in range(4):
            own = [name for index, name in order if index == case]
            places.update((name, place) for place, name in enumerate(own))
            neighbours.update(pairwise(own))
    assert {places[name, place] for name in NAMES for place in range(4)} == {7}
    for one in NAMES:
        before = sum(neighbours[one, other] for other in NAMES)
        after = sum(neighbours[other, one] for other in NAMES)
        assert before == after == 21


def test_every_method_gets_every_prompt_in_every_pair_up_to_the_loop() -> None:
    diary: list[tuple[str, str, int]] = []
    text = (*range(100, 110), *[*range(20)] * 4)  # loops after 30 tokens
    runners = {name: Diary(name, text, diary) for name in ("ours", "peer")}
    plain = Diary("plain", text, diary)
    task = Task("quoting", (Question("one"), Question("two")), max_new_tokens=80)
    (found,) = measure([task], runners, Bytes(), plain=plain, pairs=3, room=100)  # type: ignore[arg-type]
    assert diary[:2] == [("plain", "one", 80), ("plain", "two", 80)]
    warm_up, measured = diary[2:6], diary[6:]
    assert {entry[2] for entry in warm_up} == {WARM_UP_TOKENS}
    assert Counter(measured) == Counter({(n, p, 30): 3 for n in runners for p in ("one", "two")})
    assert [len(case.tokens) for case in found.cases] == [30, 30]
    assert [case.num_before_cut for case in found.cases] == [80, 80]
    assert {name: [len(runs) for runs in pairs] for name, pairs in found.runs.items()} == {
        "ours": [2, 2, 2],
        "peer": [2, 2, 2],
    }


def test_a_peer_that_refuses_is_told_with_its_reason_and_the_others_run() -> None:
    diary: list[tuple[str, str, int]] = []
    runners = {"peer": Refusing(), "ours": Diary("ours", (1, 2, 3), diary)}
    (found,) = measure(
        [Task("chat", (Question("hi"),), 3)],
        runners,
        Bytes(),  # type: ignore[arg-type]
        plain=Diary("plain", (1, 2, 3), diary),
        pairs=2,
        room=10,
    )
    assert found.refused == {"peer": "ValueError: assisted generate does not take this"}
    assert list(found.runs) == ["ours"]


def test_a_long_document_loses_its_end_and_the_question_stays() -> None:
    question = Question("Read this: ", "x" * 500 + "y" * 500, " What is it?")
    one = fitted(question, Bytes(), 300)  # type: ignore[arg-type]
    assert one is not None and one.is_cut
    text = one.prompt.text or ""
    assert text.startswith("Read this: xxx") and text.endswith("x What is it?")
    assert 280 <= one.prompt.num_tokens <= 300
    whole = fitted(question, Bytes(), 2000)  # type: ignore[arg-type]
    assert whole is not None and not whole.is_cut and whole.prompt.num_tokens == 1023


def test_a_prompt_without_a_document_is_left_out_or_refused_before_anything_is_measured() -> None:
    long, short = Question("z" * 50), Question("z")
    assert fitted(long, Bytes(), 20) is None  # type: ignore[arg-type]
    plain = Diary("plain", (1, 2, 3), diary := [])
    options = {"plain": plain, "pairs": 1, "room": 20}
    some = [Task("first", (short,), 3), Task("chat", (long, short), 3)]
    assert measure(some, {}, Bytes(), **options)[1].left_out == 1  # type: ignore[arg-type]
    diary.clear()
    with pytest.raises(InputError, match="none of its 1 prompts fits 20 tokens"):
        measure([some[0], Task("chat", (long,), 3)], {}, Bytes(), **options)  # type: ignore[arg-type]
    assert not diary


def test_tasks_are_chosen_by_the_beginning_of_their_names() -> None:
    tasks = [Task(name, (), 1) for name in ("quoting, 1k", "quoting, 4k", "code")]
    assert [task.name for task in chosen_tasks(tasks, ["quoting"])] == [
        "quoting, 1k",
        "quoting, 4k",
    ]
    assert chosen_tasks(tasks, []) == tasks
    with pytest.raises(InputError, match="'maths': expected one of 'quoting, 1k'"):
        chosen_tasks(tasks, ["maths"])
