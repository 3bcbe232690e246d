"""A drafter that fails at one row of a batch: the others draft as if nothing had happened. What
drafters hold for a request is given back, whatever becomes of it."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import matrix
import pytest
import torch
from fuzz.judge import left_by
from matrix import Cell

from mmspec.drafters.dflash.drafter import BoundDFlash
from mmspec.drafters.eagle.scoring import EagleScorer
from mmspec.drafters.glide.scoring import GlideScorer
from mmspec.engine import Engine
from mmspec.kv import KVView
from mmspec.requests import Request, Result
from mmspec.target import Target

pytestmark = pytest.mark.drafter_fails
PROMPTS = 3
VICTIM = 1
GROWN = ("growing.trees.GrowingTrees._proposed", 1)
# name in the matrix -> what is called with a row's session at each of its proposals, after all
# forwards of the batch, and where the session is among its arguments.
MOMENTS: dict[str, tuple[str, int]] = {
    "draft_same": GROWN,
    "draft_other": GROWN,
    "eagle1": GROWN,
    "eagle3": GROWN,
    "mtp": GROWN,
    "glide": GROWN,
    "compressed_window": GROWN,
    "layer_skip": GROWN,
    "medusa_own": ("medusa.trees.DepthTrees._sketch", 1),
    "dflash": ("medusa.trees.DepthTrees._sketch", 1),
    "cascade": ("cascade.drafter.BoundCascade._proposed", 1),
    "token_recycling": ("token_recycling.session.RecyclingSession.propose", 0),
    "retrieval_online": ("retrieval.session.RetrievalSession.draft", 0),
}


# Those that hold keys and values of their own, or a view of the target's.
HOLDERS = ("draft_same", "eagle3", "glide", "dflash", "compressed_window", "cascade")


class Batch(NamedTuple):
    """`plain`: what is said without drafts."""

    engine: Engine
    requests: list[Request]
    plain: list[Result]


def batch_of(drafter: str, sampling: str) -> Batch:
    """That of a cell."""
    cell = Cell("llama", drafter, sampling, PROMPTS, "text")
    requests = matrix._requests(cell)
    plain = [matrix._plain(cell.family, cell.dtype, sampling, *p) for p in matrix._places(cell)]
    made = matrix._drafter(drafter, cell, requests, plain, Path())
    if drafter == "retrieval_online":
        pairs = zip(requests, plain, strict=True)
        requests = [matrix._with_texts(request, cell, result) for request, result in pairs]
    return Batch(matrix._engine(cell.family, cell.dtype, 20, [made]), requests, plain)


def generated(drafter: str, sampling: str, before: Callable[[Any], None]) -> list[Result]:
    """The answers of a batch; `before` it is told the drafter, bound."""
    engine, requests, plain = batch_of(drafter, sampling)
    before(engine.drafters[0])
    results = engine.generate(requests)
    assert [r.tokens for r in results] == [r.tokens for r in plain], "a wrong text"
    return results


def noted(sessions: list[Any], patch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Notes the sessions of a bound drafter, in the order of the requests."""

    def note(drafter: Any) -> None:
        right = type(drafter).start

        def start(self: Any, *args: Any) -> Any:
            sessions.append(right(self, *args))
            return sessions[-1]

        patch.setattr(type(drafter), "start", start)

    return note


def failing(
    moment: str, place: int, fails: Callable[[Any], bool], patch: pytest.MonkeyPatch
) -> None:
    """Whom `fails` says so of it fails for."""
    *module, name = f"mmspec.drafters.{moment}".split(".")
    holder: Any
    if module[-1][0].isupper():
        holder = getattr(import_module(".".join(module[:-1])), module[-1])
    else:
        holder = import_module(".".join(module))
    right = getattr(holder, name)

    def wrong(*args: Any, **options: Any) -> Any:
        if fails(args[place]):
            raise RuntimeError("this row's own")
        return right(*args, **options)

    patch.setattr(holder, name, wrong)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "mmspec.drafting"]


@pytest.mark.parametrize("drafter", MOMENTS)
def test_one_rows_failure_is_its_own(
    drafter: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sampling = "t1" if drafter in ("draft_same", "eagle3", "retrieval_online") else "greedy"
    expected = generated(drafter, sampling, lambda drafter: None)
    sessions, asked = list[Any](), list[Any]()

    def fails(session: Any) -> bool:
        asked.append(session)
        is_victim = session is sessions[VICTIM]
        return is_victim and asked.count(session) > 1

    failing(*MOMENTS[drafter], fails, monkeypatch)
    results = generated(drafter, sampling, noted(sessions, monkeypatch))
    (message,) = told(caplog)
    assert "this row's own" in message and "this request goes on without it" in message
    assert sum(session is sessions[VICTIM] for session in asked) == 3, "all together, then alone"
    shares = drafter.startswith(("retrieval", "token_recycling"))  # rows learn from each other
    for row, (before, after) in enumerate(zip(expected, results, strict=True)):
        if row == VICTIM:
            assert after.stats.steps >= before.stats.steps
        elif not shares:
            assert after.stats.accepted_lengths == before.stats.accepted_lengths
    assert any(set(r.stats.accepted_lengths) - {0} for r in results), "nothing was accepted"


@pytest.mark.parametrize("drafter", ["eagle3", "medusa_own"])
def test_a_failure_at_all_rows_is_said_once(
    drafter: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing(*MOMENTS[drafter], lambda session: True, monkeypatch)
    generated(drafter, "greedy", lambda drafter: None)
    (message,) = told(caplog)
    assert "3 requests go on without it, each one's text is the same" in message


@pytest.mark.parametrize("drafter", HOLDERS)
def test_a_forward_that_fails_midway_leaves_nothing_behind(
    drafter: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls, bound = list[int](), list[Any]()

    def failing(right: Callable[..., Any]) -> Callable[..., Any]:
        def score(self: Any, trees: Any, cache: Any, *args: Any, **options: Any) -> Any:
            if not isinstance(self, Target) or isinstance(cache, KVView) or cache is bound[1]:
                calls.append(1)
                if len(calls) >= 6:
                    raise RuntimeError("out of luck")
            return right(self, trees, cache, *args, **options)

        return score

    def spoil(drafter: Any) -> None:
        bound.extend([drafter, getattr(drafter, "cache", None)])
        for scorer in (Target, EagleScorer, GlideScorer):
            monkeypatch.setattr(scorer, "score", failing(scorer.score))
        monkeypatch.setattr(BoundDFlash, "_block", failing(BoundDFlash._block))

    generated(drafter, "t1", spoil)
    assert len(calls) == 6 + PROMPTS, "once more for each row, and never again"
    (message,) = told(caplog)
    assert "RuntimeError: out of luck" in message
    assert not [*left_by(bound[0])]


def test_a_failure_at_the_start_is_that_rows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(drafter: Any) -> None:
        right, calls = type(drafter).start, list[int]()

        def start(self: Any, *args: Any) -> Any:
            calls.append(1)
            if len(calls) == VICTIM + 1:
                raise RuntimeError("not this one")
            return right(self, *args)

        monkeypatch.setattr(type(drafter), "start", start)

    results = generated("eagle3", "greedy", spoil)
    (message,) = told(caplog)
    assert "not this one" in message
    assert not results[VICTIM].stats.by_drafter
    assert all(r.stats.by_drafter for row, r in enumerate(results) if row != VICTIM)


def test_a_lost_device_is_raised(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    calls = list[int]()
    with pytest.raises(RuntimeError, match="illegal memory"):
        generated("eagle3", "greedy", partial(_raise, error, calls, monkeypatch))
    assert len(calls) == 1 and not told(caplog), "it was asked again, or left out"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_used_up_memory_costs_the_drafter_and_no_text(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = list[int]()
    generated("eagle3", "greedy", partial(_raise, error, calls, monkeypatch))
    assert len(calls) == 1 and len(told(caplog)) == 1, "it was asked again, or told of twice"


def _raise(
    error: Exception, calls: list[int], monkeypatch: pytest.MonkeyPatch, drafter: Any
) -> None:
    """The drafter's every proposal."""

    def fail(self: Any, *args: Any) -> Any:
        calls.append(1)
        raise error

    monkeypatch.setattr(type(drafter), "propose_together", fail)
