"""Kernels that begin early are taken where they say the same, sooner."""

import logging
from collections.abc import Callable

import interpreted
import pretend
import pytest
import torch
from families import FAMILIES
from torch import Tensor

import mmspec
from mmspec.drafters.draft_model import DraftModel
from mmspec.drafters.draft_model.model import EarlyBegin
from mmspec.target.early_begin import pays
from mmspec.target.parts import Entered
from mmspec.target.tilings import Tilings

assert interpreted


class Doubling:
    """Half a block that adds its input to the stream; `error` more where kernels begin early."""

    half_bytes = 2**27

    def __init__(self, tilings: Tilings, error: float = 0.0) -> None:
        self.like = torch.ones(8)
        self._tilings, self._error = tilings, error

    def gated(self, states: Tensor, added: Tensor | None) -> Entered:
        states = states if added is None else states + added
        return Entered(states, states)

    def down(self, product: Tensor) -> Tensor:
        return product + (self._error if self._tilings.is_early else 0.0)


def clock_of(tilings: Tilings, *early_ms: float) -> Callable[[Callable[[], object]], float]:
    """The times of kernels that begin early, call by call; 1 ms of others."""
    times = iter(early_ms)

    def clock(run: Callable[[], object]) -> float:
        run()
        return next(times) if tilings.is_early else 1.0

    return clock


@pytest.mark.parametrize(
    "early_ms, expected",
    [
        ((0.9, 0.8), True),
        ((0.9, 1.01), True),  # the library multiplies there
        ((0.9, 1.1), False),
        ((1.0, 1.0), False),
        ((1.2, 0.9), False),
    ],
)
def test_only_what_is_quicker_is_taken(early_ms: tuple[float, ...], expected: bool) -> None:
    tilings = Tilings({})
    halves = [Doubling(tilings) for _ in range(4)]
    assert pays(halves, tilings, clock_of(tilings, *early_ms)) == expected
    assert not tilings.is_early, "nothing is changed by trying"


def test_what_says_something_else_is_never_taken(caplog: pytest.LogCaptureFixture) -> None:
    tilings = Tilings({})
    halves = [Doubling(tilings), Doubling(tilings, error=1e-3)]
    with caplog.at_level(logging.WARNING):
        assert not pays(halves, tilings, clock_of(tilings, 0.1, 0.1))
    assert "say something else" in caplog.text


def test_a_clock_that_fails_changes_nothing() -> None:
    tilings = Tilings({})

    def clock(run: Callable[[], object]) -> float:
        raise RuntimeError("no graph")

    with pytest.raises(RuntimeError):
        pays([Doubling(tilings)], tilings, clock)
    assert not tilings.is_early


@pytest.mark.parametrize("scale", [1.0, torch.nan])
def test_what_is_not_a_number_says_the_same_as_itself(scale: float) -> None:
    tilings = Tilings({})
    half = Doubling(tilings)
    half.down = lambda product: product * scale  # type: ignore[method-assign]
    assert pays([half], tilings, clock_of(tilings, 0.5, 0.5))


@pytest.mark.parametrize("early_begin, tried", [("auto", 1), ("never", 0)])
def test_it_can_be_switched_off(
    early_begin: EarlyBegin, tried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a target and for a draft model; then not even a trial is run."""
    parts = pytest.importorskip("mmspec.target.triton_parts")
    trials: list[object] = []
    monkeypatch.setattr(parts, "can_begin_early", lambda device: True)
    monkeypatch.setattr(parts, "pays", lambda *told: bool(trials.append(told)))
    with pretend.device():
        model = FAMILIES["llama"].build(torch.float32).to("cuda")
        del model.model.layers[1:]
        model.config.num_hidden_layers = 1
        mmspec.load(model, drafter="none", overrides={"decode.early_begin": early_begin})
        assert len(trials) == tried
        DraftModel(model, early_begin=early_begin)
        assert len(trials) == 2 * tried


def test_all_measurements_of_a_model_are_recorded_on_one_stream() -> None:
    """For each stream that has multiplied torch keeps a workspace, until the process ends."""
    from mmspec.target.triton_kit import kit_on

    seen = []
    with pretend.device():
        model = FAMILIES["llama"].build(torch.float32).to("cuda")
        kit = kit_on(model, model.device)
        assert kit is not None and kit._clock is not None
        for _ in range(2):
            kit._clock(lambda: seen.append(torch.cuda.current_stream()))
        caller = torch.cuda.current_stream()
    assert len(seen) == 4 and len(set(seen)) == 1 and caller not in seen
