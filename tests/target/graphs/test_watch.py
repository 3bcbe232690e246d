"""A model's watch sees whatever would make a replay differ from its forward."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import nn

from mmspec.target.graphs.watch import Watch


def layer_of(model: Any) -> Any:
    return model.get_decoder().layers[1].mlp


def written(model: Any) -> None:
    with torch.no_grad():
        layer_of(model).up_proj.weight.add_(1)


def replaced(model: Any) -> None:
    layer_of(model).up_proj.weight = nn.Parameter(layer_of(model).up_proj.weight.detach().clone())


def moved(model: Any) -> None:
    layer_of(model).up_proj.weight.data = layer_of(model).up_proj.weight.data.clone()


def exchanged(model: Any) -> None:
    mlp = layer_of(model)
    mlp.up_proj, mlp.gate_proj = mlp.gate_proj, mlp.up_proj


def hooked(model: Any) -> None:
    layer_of(model).register_forward_hook(lambda *_: None)


def hooked_before(model: Any) -> None:
    layer_of(model).up_proj.register_forward_pre_hook(lambda *_: None)


def given_other_hooks(model: Any) -> None:
    layer_of(model)._forward_hooks = OrderedDict({7: lambda *_: None})


def given_other_hooks_before(model: Any) -> None:
    layer_of(model)._forward_pre_hooks = OrderedDict()
    layer_of(model).register_forward_pre_hook(lambda *_: None)


def given_a_forward(model: Any) -> None:
    layer_of(model).forward = lambda states: states


def trained(model: Any) -> None:
    layer_of(model).train()


def adapted(model: Any) -> None:
    layer_of(model)._disable_adapters = True


CHANGES = [
    written, replaced, moved, exchanged, hooked, hooked_before, given_other_hooks,
    given_other_hooks_before, given_a_forward, trained, adapted,
]  # fmt: skip
MEDDLING = (
    hooked, hooked_before, given_other_hooks, given_other_hooks_before, given_a_forward, trained,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_seen(change: Callable[[Any], None]) -> None:
    model = FAMILIES["llama"].build(torch.float32)
    layer_of(model)._disable_adapters = False
    watch = Watch(model)
    assert watch.may_record and watch.holds
    change(model)
    assert not watch.holds
    anew = Watch(model)
    assert anew.holds
    assert anew.may_record == (change not in MEDDLING)


def test_transformers_own_hooks_are_no_meddling() -> None:
    model = FAMILIES["llama"].build(torch.float32)
    model(torch.tensor([[3, 4]]), output_hidden_states=True)
    assert Watch(model).may_record
