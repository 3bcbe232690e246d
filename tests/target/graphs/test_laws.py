"""What tells two calls' graphs apart, which graphs are kept, and that a replay is held against the
forward in everything that it gives."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import pytest
import torch
from target.graphs.test_score import CHAIN, FORK, Decoded, tensor_rung
from torch import Tensor, nn

from mmspec.errors import GraphWarning
from mmspec.target.graphs import Computed, Recording, ScoreGraphs, score
from mmspec.target.graphs.call import Queries
from mmspec.tree import TokenTree

assert tensor_rung  # used by its name
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def rung(tensor_rung: None) -> None: ...


# Which graph


@pytest.mark.parametrize("first, second", [((), (1,)), ((1,), (0, 1)), ((0, 2), (1,))])
def test_calls_that_ask_for_other_hidden_states_have_other_graphs(
    first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    decoded = Decoded()
    for taps in (first, first, second, second, first):
        decoded.step(FORK, taps=taps)
        scores = decoded.target.score([FORK], decoded.cache, decoded.places[:1], taps=taps)
        assert set(scores[0].hidden) == set(taps)
    # The first that ask make transformers put hooks into the model, which ends those before.
    assert decoded.info.num_graphs == 2 and decoded.info.replayed == 8


def test_a_cache_that_logs_queries_has_a_graph_that_tells_them() -> None:
    """In the buffers of one that did not, with the same rows: nothing else tells them apart."""
    decoded = Decoded()
    for _ in range(3):
        decoded.step(FORK, CHAIN)
    addresses = decoded.cache.addresses
    decoded.cache.release()
    make = {target: target.new_cache for target in (decoded.target, decoded.twin)}
    with pytest.MonkeyPatch.context() as patch:
        for target, new_cache in make.items():
            patch.setattr(target, "new_cache", lambda new=new_cache: new(watched_queries=6))
        decoded.begin()
    assert decoded.cache.addresses == addresses
    for replayed in (False, True, True):
        assert decoded.step(FORK, CHAIN, path=(0, 1)) == replayed
        for place, own in zip(decoded.places, decoded.own_places, strict=True):
            for layer in range(decoded.model.config.num_hidden_layers):
                assert decoded.cache.queries is not None and decoded.own_cache.queries is not None
                found = decoded.cache.queries.read(place.row, layer)
                expected = decoded.own_cache.queries.read(own.row, layer)
                assert found is not None and expected is not None
                torch.testing.assert_close(found.states, expected.states, rtol=0, atol=1e-9)
                assert found.scaling == expected.scaling


def test_under_autocast_nothing_is_recorded_or_replayed() -> None:
    decoded = Decoded(dtype=torch.float32)
    for _ in range(2):
        decoded.step(FORK)
    assert decoded.info.replayed == 1
    with torch.autocast("cpu", torch.bfloat16):
        for tree in (FORK, FORK, CHAIN, CHAIN):
            own = decoded.twin.score([tree], decoded.own_cache, decoded.own_places[:1])[0]
            got = decoded.target.score([tree], decoded.cache, decoded.places[:1])[0]
            assert torch.equal(got.logits, own.logits)
    assert decoded.info.replayed == decoded.info.recorded == 1
    assert decoded.step(FORK) and not decoded.step(CHAIN)


# Which graphs are kept


ONE = TokenTree.root(5)


def test_the_graph_that_was_not_used_for_longest_makes_room() -> None:
    decoded = Decoded()
    decoded.target.graphs = ScoreGraphs(decoded.target.graphs.recorder, CPU, max_graphs=2)  # type: ignore[union-attr]
    for tree in (FORK, FORK, CHAIN, CHAIN, FORK, ONE, ONE):
        decoded.step(tree)
    assert decoded.info.recorded == 3 and decoded.info.num_graphs == 2
    assert decoded.step(FORK) and decoded.info.recorded == 3, "it was used before the last came"
    assert decoded.step(CHAIN) and decoded.info.recorded == 4


def test_of_what_was_met_once_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "_MAX_SEEN", 2)
    decoded = Decoded()
    assert not any(decoded.step(tree) for tree in (FORK, CHAIN, ONE))
    assert not decoded.step(FORK), "as if it came for the first time"
    assert decoded.step(ONE) and decoded.info.recorded == 1


# What a replay is held against


@dataclass(frozen=True)
class Call:
    """Of nothing but a number."""

    value: float
    kind: Hashable = "kind"
    size: tuple[int, int] = (1, 2)
    counts: Sequence[int] = (2,)
    is_bitwise: bool = False
    place: Tensor = field(default_factory=lambda: torch.zeros(4))

    @property
    def varied(self) -> Self:
        return replace(self, value=self.value + 1)

    @property
    def left(self) -> Sequence[Tensor]:
        return [self.place.clone()]


class Given:
    """A call's number."""

    def __init__(self) -> None:
        self.value = 0.0

    def fill(self, call: Call) -> None:
        self.value = call.value


def forward(given: Given, call: Call) -> Computed:
    """All that a forward gives, and leaves."""
    made = torch.arange(6.0).view(1, 2, 3) * given.value
    call.place.copy_(torch.arange(4.0) * given.value)
    return Computed(made.clone(), {1: made + 1}, (Queries(0, made.view(1, 1, 2, 3) + 2, 0.5),))


class Replays:
    """Records a forward; its replays give everything anew but what is `stale`, to which `wrong`
    happens."""

    def __init__(self, stale: str, wrong: Callable[[Tensor], Any]) -> None:
        self._stale, self._wrong = stale, wrong

    def another(self, device: torch.device) -> None:
        return None

    def record(self, run: Callable[[], Computed]) -> Recording:
        computed = run()
        (place,) = _cells(run, Call)

        def replay() -> None:
            again, left = run(), place.place
            pairs: dict[str, tuple[Tensor, Tensor]] = {
                "logits": (computed.logits, again.logits),
                "hidden": (computed.hidden_states[1], again.hidden_states[1]),
                "queries": (computed.queries[0].states, again.queries[0].states),
                "left": (left, left.clone()),
            }
            for name, (own, new) in pairs.items():
                own.copy_(new)
                if name == self._stale:
                    self._wrong(own)

        return Recording(computed, replay)


def _cells(run: Callable[[], Computed], kind: type[Call]) -> Iterator[Call]:
    """What a function closes over."""
    yield from (
        cell.cell_contents
        for cell in run.__closure__ or ()  # type: ignore[attr-defined]
        if isinstance(cell.cell_contents, kind)
    )


WRONG: dict[str, Callable[[Tensor], Any]] = {
    "as recorded": lambda own: own.mul_(0.5),
    "one number": lambda own: own.view(-1)[-1].add_(1.0),
    "nan": lambda own: own.view(-1)[1].fill_(torch.nan),
}


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("stale", ["logits", "hidden", "queries", "left"])
def test_a_replay_that_differs_in_anything_is_given_up(stale: str, how: str) -> None:
    graphs = ScoreGraphs(Replays(stale, WRONG[how]), CPU, inputs=lambda call, device: Given())
    call, model = Call(3.0), nn.Identity().eval()
    assert graphs.score(call, forward, mode=None, model=model) is None
    with pytest.warns(GraphWarning, match="a replay was off"):
        assert graphs.score(call, forward, mode=None, model=model) is None
    assert graphs.info.num_graphs == 0 and graphs.info.given_up
    for _ in range(3):
        assert graphs.score(call, forward, mode=None, model=model) is None
    assert graphs.info.recorded == 1, "no more of it is recorded"


def test_one_that_gives_all_of_it_anew_is_taken() -> None:
    graphs = ScoreGraphs(Replays("", print), CPU, inputs=lambda call, device: Given())
    model = nn.Identity().eval()
    for value in (3.0, 4.0, 5.0):
        found = graphs.score(Call(value), forward, mode=None, model=model)
        if found is not None:
            made = torch.arange(6.0).view(1, 2, 3) * value
            assert torch.equal(found.logits, made)
            assert torch.equal(found.hidden_states[1], made + 1)
            assert torch.equal(found.queries[0].states, made.view(1, 1, 2, 3) + 2)
    assert graphs.info.replayed == 2


def test_in_bitwise_mode_the_last_bit_counts() -> None:
    def nudged(own: Tensor) -> None:
        own.view(-1)[-1].mul_(1 + 2.0**-23)

    model = nn.Identity().eval()
    for is_bitwise in (False, True):
        graphs = ScoreGraphs(Replays("logits", nudged), CPU, inputs=lambda call, device: Given())
        call = Call(3.0, is_bitwise=is_bitwise)
        assert graphs.score(call, forward, mode=None, model=model) is None
        if not is_bitwise:
            assert graphs.score(call, forward, mode=None, model=model) is not None
            continue
        with pytest.warns(GraphWarning, match="a replay was off"):
            assert graphs.score(call, forward, mode=None, model=model) is None
