"""Backends that fail on a CUDA device, real or pretended: the request goes on, by graphs too."""

import warnings
from collections.abc import Callable

import matrix
import pytest
import torch
from draft_models import letters
from families import FAMILIES, prompt_inputs
from torch import Tensor

import mmspec
from mmspec.attention import LayerRule, TreeCall, ladder, tail, tree
from mmspec.attention.ladder import Order
from mmspec.attention.setbacks import Setbacks
from mmspec.attention.triton_tree import TritonTree
from mmspec.engine import Engine
from mmspec.errors import BackendWarning
from mmspec.requests import Request

pytestmark = pytest.mark.gpu


class Failing(TritonTree):
    """As Triton's, but where `fails` says otherwise."""

    name = "first"

    def __init__(self, fails: Callable[[TreeCall, int], bool]) -> None:
        super().__init__()
        self.fails, self.calls = fails, 0

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
    ) -> Tensor:
        self.calls += 1
        if self.fails(call, self.calls):
            query.sum().item()  # refused while a graph is recorded, which it ends
            raise RuntimeError("no kernel image is available")
        return super().attend(query, keys, values, call=call, rule=rule)


def decoded(graphs: str) -> tuple[list[int], Engine]:
    model = FAMILIES["llama"].build(torch.float32).cuda()
    engine = mmspec.load(
        model,
        letters(),
        overrides={"decode.cuda_graphs": graphs, "decode.controller": "fixed"},
        drafter=matrix._lookup(),
    )
    inputs = prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=20, seed=0)
    (result,) = engine.generate([Request(inputs, max_new_tokens=6, temperature=0.0)])
    return list(result.tokens), engine


def is_captured(call: TreeCall, calls: int) -> bool:
    return torch.cuda.is_current_stream_capturing()


def is_prepared(call: TreeCall, calls: int) -> bool:
    return call.prepared is not None


def is_late(call: TreeCall, calls: int) -> bool:
    return call.prepared is None and calls >= 7


@pytest.mark.parametrize("fails", [is_captured, is_prepared, is_late])
def test_a_failure_changes_no_token_and_keeps_graphs(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[[TreeCall, int], bool]
) -> None:
    expected, _ = decoded("never")
    failing = Failing(fails)
    made = Setbacks()
    for module in (tree, tail):
        monkeypatch.setattr(module, "SETBACKS", made)
    monkeypatch.setitem(ladder.RUNGS, "first", failing)
    order = Order(range(100), None, ("first", "triton", "sdpa", "matmul"))
    monkeypatch.setattr(ladder, "CUDA_ORDERS", (order,))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warnings.simplefilter("error", mmspec.errors.GraphWarning)
        got, engine = decoded("auto")
    assert got == expected
    told = {str(w.message) for w in seen if w.category is BackendWarning}
    assert len(told) == 1 and "attention by first failed" in told.pop()
    assert engine.graph_info is not None and not engine.graph_info.given_up
    assert engine.graph_info.replayed > 0
