"""Drafts that cost forwards of a model are as long as they are worth, and the text is the same."""

from collections.abc import Callable
from typing import Any

import pytest
from ragged import requests_of, target_of

from mmspec.calibration import Calibration
from mmspec.controller import FixedStep
from mmspec.drafters.base import Drafter, DrafterForTarget
from mmspec.drafters.cascade import Cascade
from mmspec.drafters.compressed_kv import CompressedKV
from mmspec.drafters.draft_model import DraftModel
from mmspec.drafters.forwards import ForwardCost
from mmspec.drafters.layer_skip import LayerSkip
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.engine import Engine
from mmspec.requests import Result
from mmspec.state import Prices

VIEW: dict[str, Any] = {"budget": 16, "recent": 8, "max_share": 1.0, "min_confidence": 0.0}
DEPTH = 5
DRAFTERS: dict[str, Callable[[], Drafter | DrafterForTarget]] = {
    "compressed_kv": lambda: CompressedKV(max_depth=DEPTH, **VIEW),
    "cascade": lambda: Cascade(
        PromptLookup(), CompressedKV(**VIEW), max_depth=DEPTH, max_forwards=DEPTH
    ),
    "layer_skip": lambda: LayerSkip(layers=[1], max_depth=DEPTH, min_confidence=0.0),
    "draft_model": lambda: DraftModel(
        target_of("llama").model, max_depth=DEPTH, top_k=1, min_confidence=0.0
    ),
}


def generate(name: str, prices: Prices | None, monkeypatch: pytest.MonkeyPatch) -> list[Result]:
    monkeypatch.setattr(FixedStep, "prices", lambda self, row, drafter: prices)
    engine = Engine(target_of("llama"), None, [DRAFTERS[name]()], controller="fixed", max_rows=3)
    requests = requests_of("llama", {"temperature": 1.0}, ["text"] * 3)
    return engine.generate(requests)


def deepest(results: list[Result]) -> int:
    return max(max(result.stats.choices.budgets) for result in results)


@pytest.mark.parametrize("name", DRAFTERS)
def test_a_draft_is_as_long_as_its_forwards_are_worth(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = generate(name, None, monkeypatch)
    assert deepest(free) == DEPTH
    dear = generate(name, Prices(token_s=1e-9, node_s=0.0), monkeypatch)
    cheap = generate(name, Prices(token_s=1e9, node_s=0.0), monkeypatch)
    dear_nodes = generate(name, Prices(token_s=1.0, node_s=1e9), monkeypatch)
    if name == "cascade":  # a forward takes what the lower drafter got right, too
        assert max(deepest(dear), deepest(dear_nodes)) <= DEPTH
        steps = [sum(r.stats.choices.budgets.values()) for r in dear]
        nodes = [sum(n * c for n, c in r.stats.choices.budgets.items()) for r in dear]
        assert sum(nodes) < 2 * sum(steps)
    else:
        assert deepest(dear) == deepest(dear_nodes) == 1
    assert deepest(cheap) == DEPTH
    texts = [[result.tokens for result in each] for each in (free, dear, cheap, dear_nodes)]
    assert texts[0] == texts[1] == texts[2] == texts[3]


def test_a_forward_pays_where_it_saves_more_than_it_costs() -> None:
    cost, calibration = ForwardCost(), Calibration()
    prices = Prices(token_s=0.1, node_s=0.01)
    assert cost.least_likely(None, calibration) == 0.0
    assert cost.least_likely(prices, calibration) == 1.0  # not measured: one level
    cost.observe(9.0, 3)  # the first is not what the others are
    assert cost.forward_s is None and cost.least_likely(prices, calibration) == 1.0
    cost.observe(0.0, 0)
    assert cost.forward_s is None
    cost.observe(0.06, 2)
    assert cost.forward_s == pytest.approx(0.03)
    rate = 0.8  # believed of a first child
    assert cost.least_likely(prices, calibration) == pytest.approx(0.04 / (0.1 * rate))
    assert cost.least_likely(prices, calibration, tokens=3.0) == pytest.approx(0.06 / (0.3 * rate))
    assert cost.affordable(None) > 1000 and cost.affordable(prices) > 1000
    assert cost.affordable(Prices(0.1, 0.01, most_s=0.1)) == 3
    assert cost.affordable(Prices(0.1, 0.01, most_s=0.001)) == 1
    for _ in range(50):
        calibration.observe("first", False)
    assert cost.least_likely(prices, calibration) > 4.0
