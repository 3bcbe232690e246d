"""What drafters do before they propose: they say so, it is done once, and where it is refused, or
done late, the text is the same."""

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from ragged import requests_of, target_of
from small_drafters import SMALL, VIEW, small

from mmspec.controller import FixedController, FixedStep, Pace
from mmspec.draft_guide import DraftGuide
from mmspec.drafters.base import DraftSession, PreparedSession, TappingDrafter
from mmspec.drafters.compressed_kv import CompressedKV
from mmspec.drafters.own_text import OwnText
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.engine import Engine
from mmspec.requests import Result
from mmspec.state import Prefill, Preparation, Prompt
from mmspec.tree import TokenTree

SAMPLED = {"temperature": 1.0, "top_k": 0}
NEVER_DUE = ("layer_skip", "medusa", "lookahead", "token_recycling")
DRAFTERS = [name for name in SMALL if name not in NEVER_DUE]
CAN_WAIT = {"layer_skip/searching"}


class Allowing(FixedController):
    """Prepares where `allows` says so, and keeps a record."""

    def __init__(self, allows: Callable[[], bool], *, asks: bool = True) -> None:
        self.allows = allows
        self.asks = asks
        self.due: list[Preparation] = []
        self.done: list[Preparation] = []
        self.paces: Sequence[Pace] = ()

    def step(self, paces: Sequence[Pace], context: int) -> "AllowingStep":
        self.paces = paces
        return AllowingStep(self, paces)


class AllowingStep(FixedStep):
    def __init__(self, controller: Allowing, paces: Sequence[Pace]) -> None:
        super().__init__(paces)
        self._controller = controller

    def asks(
        self, row: int, drafter: str, tree: TokenTree, *, least_s: float | None = None
    ) -> bool:
        return self._controller.asks

    def prepares(self, row: int, drafter: str, due: Preparation) -> bool:
        self._controller.due.append(due)
        return self._controller.allows()

    def prepared(self, row: int, drafter: str, due: Preparation, seconds: float) -> None:
        self._controller.done.append(due)
        super().prepared(row, drafter, due, seconds)


class Watched:
    """The drafter; after each preparation nothing may be due."""

    def __init__(self, drafter: Any) -> None:
        self._drafter = drafter
        self.name = drafter.name  # Python 3.12 asks no __getattr__ for a protocol
        if isinstance(drafter, TappingDrafter):
            self.taps = drafter.taps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drafter, name)

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> DraftSession:
        session = self._drafter.start(prompt, prefill, guide)
        assert isinstance(session, PreparedSession)
        prepare = session.prepare

        def watched(tokens: Sequence[int]) -> None:
            before = session.preparation(len(tokens))
            assert before == session.preparation(len(tokens)), "asking changed something"
            prepare(tokens)
            left = session.preparation(len(tokens))
            assert left is None, f"{before} was due, and after it {left}"

        session.prepare = watched  # type: ignore[method-assign]
        return session


@pytest.fixture(autouse=True)
def no_text_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmspec.drafters.own_text._MANY", 16)
    monkeypatch.setattr("mmspec.drafters.draft_model.session.CHUNK", 8)
    monkeypatch.setattr("mmspec.drafters.draft_model.drafter.CHUNK", 8)


def generate(
    name: str, allows: Callable[[], bool], caplog: pytest.LogCaptureFixture
) -> tuple[list[Result], Allowing, Engine]:
    target = target_of("llama")
    controller = Allowing(allows)
    engine = Engine(target, None, [Watched(small(name))], controller=controller, max_rows=3)
    results = engine.generate(requests_of("llama", SAMPLED, ["text"] * 3))
    assert not caplog.records, caplog.text  # a drafter that fails would be left out
    assert tuple(result.tokens for result in results) == plain_texts()
    return results, controller, engine


@cache
def plain_texts() -> tuple[tuple[int, ...], ...]:
    requests = requests_of("llama", SAMPLED, ["text"] * 3)
    return tuple(r.tokens for r in Engine(target_of("llama"), None, max_rows=3).generate(requests))


@pytest.mark.parametrize("name", DRAFTERS)
def test_what_is_due_is_said_and_then_is_done(name: str, caplog: pytest.LogCaptureFixture) -> None:
    results, controller, _ = generate(name, lambda: True, caplog)
    assert controller.done
    for due in controller.done:
        assert due.steps + due.tokens + due.seconds > 0 and due.lasts_tokens > 0
        assert due.can_wait == (name in CAN_WAIT)
    for result in results:
        own = name.split("/")[0]
        assert own in result.stats.choices.asked
        assert result.stats.choices.prepared_s[own] > 0
        assert f"prepared {own} in" in result.stats.explanation


@pytest.mark.parametrize("name", DRAFTERS)
def test_a_drafter_that_may_not_prepare_itself_is_not_asked(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """But where what it has to do can wait."""
    results, controller, engine = generate(name, lambda: False, caplog)
    assert controller.due and not controller.done
    for result in results:
        asked = result.stats.choices.asked
        assert (name.split("/")[0] in asked) == (name in CAN_WAIT)
        assert not result.stats.choices.prepared_s
    if name in ("compressed_kv", "cascade"):
        drafter = engine.drafters[0]
        views = getattr(drafter, "middle", drafter)
        assert views.num_bytes == 0, "memory was taken for a view"


def test_what_is_due_is_not_weighed_for_one_that_is_not_asked() -> None:
    controller = Allowing(lambda: True, asks=False)
    engine = Engine(target_of("llama"), None, [PromptLookup()], controller=controller, max_rows=3)
    results = engine.generate(requests_of("llama", SAMPLED, ["text"] * 3))
    assert tuple(result.tokens for result in results) == plain_texts()
    assert not controller.due and not controller.done


@pytest.mark.parametrize("name", DRAFTERS)
def test_a_text_is_the_same_whenever_its_drafters_are_prepared(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    draw = random.Random(1)
    results, controller, _ = generate(name, lambda: draw.random() < 0.2, caplog)
    if name not in CAN_WAIT:
        assert len(controller.done) < len(controller.due)
        steps = sum(result.stats.steps for result in results)
        asked = sum(sum(result.stats.choices.asked.values()) for result in results)
        assert 0 < asked < steps


def test_a_view_of_all_keys_is_dearer_than_one_of_a_few() -> None:
    works = list[float]()
    for budget in (8, 4096):
        target = target_of("llama")
        drafter = CompressedKV(**{**VIEW, "budget": budget})
        controller = Allowing(lambda: True)
        Engine(target, None, [drafter], controller=controller).generate(
            requests_of("llama", SAMPLED, ["text"] * 3)[:1]
        )
        works.append(controller.done[0].steps)
    assert works[1] > 2 * works[0]


def test_what_a_prompts_token_takes_is_measured_where_enough_of_it_was_computed() -> None:
    controller = Allowing(lambda: True)
    engine = Engine(target_of("llama"), None, controller=controller, prefix_bytes=2**20)
    for length, reused, is_told in ((100, 0, True), (101, 99, False), (20, 0, False)):
        prompt = Prompt(torch.arange(length) % 90)
        result = engine.generate(prompt, max_new_tokens=2, do_sample=False)
        assert result.stats.reused_tokens >= reused
        token_s = controller.paces[0].token_s
        assert (token_s is not None) == is_told
        assert token_s is None or 0 < token_s < 1


def test_indexing_a_prompt_waits_for_the_first_proposal() -> None:
    text = OwnText(Prompt(torch.arange(100), draft_texts=((7, 8, 9),)))
    assert len(text.index) == 0
    due = text.preparation(101)
    assert due is not None and due.seconds > 0
    text.grow([*range(100), 5])
    assert len(text.index) == 3 + 1 + 101 and text.preparation(101) is None
