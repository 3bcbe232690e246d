"""Every family of models gets heads that fit it, and that its drafters take."""

from contextlib import nullcontext
from itertools import cycle
from pathlib import Path

import numpy as np
import pretend
import pytest
import torch
from families import FAMILIES

from mmspec.build_drafters import build_drafters
from mmspec.config import load_config
from mmspec.drafters.base import DrafterForTarget
from mmspec.target import Target
from mmspec.training.heads.examples import Example
from mmspec.training.heads.features import FeatureReader
from mmspec.training.heads.methods import DRAFTERS, METHODS

KINDS = ("medusa", "eagle", "eagle3", "glide")


@pytest.mark.parametrize(("family", "kind"), [*zip(FAMILIES, cycle(KINDS), strict=False)])
def test_a_head_is_trained_a_step_and_drafts(family: str, kind: str, tmp_path: Path) -> None:
    target = Target(FAMILIES[family].build(torch.float32))
    draw = np.random.default_rng(0)
    examples = [Example(str(n), draw.integers(3, 60, n), np.arange(n) >= 3, 3) for n in (9, 14)]
    counts = np.ones(target.vocab_size, np.int64)
    method = METHODS[kind](target, load_config().train, counts)
    reader = FeatureReader(target, None, taps=method.taps, kv_layer=method.kv_layer)  # type: ignore[arg-type]
    batch = reader.read(examples)
    optimizer = torch.optim.SGD(method.module.parameters(), lr=1.0)
    trained = list(method.module.parameters())
    before = method.loss(batch, torch.Generator().manual_seed(0)).total
    before.backward(inputs=trained)
    size = torch.nn.utils.get_total_norm([w.grad for w in trained if w.grad is not None])
    assert before.isfinite() and 0 < size < torch.inf
    optimizer.param_groups[0]["lr"] = 1e-2 / size.item()  # so small that it must go downhill
    optimizer.step()
    assert method.loss(batch, torch.Generator().manual_seed(0)).total < before
    assert method.drafts(batch, top_k=2).shape == (method.depth, 2, 14, 2)
    kept = [weight.clone() for weight in method.module.parameters()]
    method.save(tmp_path, dtype=torch.float32)
    assert all(torch.equal(*pair) for pair in zip(method.module.parameters(), kept, strict=True))
    name = DRAFTERS[kind]
    config = load_config(None, [f"drafter.name={name}", f"drafter.{name}.path={tmp_path}"])
    (drafter,) = build_drafters(config.drafter)
    assert isinstance(drafter, DrafterForTarget)
    assert drafter.for_target(target, None).name == name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_parts", [False, True])
def test_beside_a_target_on_a_gpu_all_is_computed_where_its_head_is(
    kind: str, in_parts: bool
) -> None:
    """On a pretended one, which knows no gradients: losses and drafts are those of a CPU.
    `in_parts`: the target's layers are on the CPU."""
    accelerate = pytest.importorskip("accelerate") if in_parts else None
    examples = [Example(str(n), np.arange(3, 3 + n), np.arange(n) >= 3, 3) for n in (9, 14)]
    losses, drafts = [], []
    for place in ("cpu", "cuda"):
        with pretend.device() if place == "cuda" else nullcontext():
            model = FAMILIES["llama"].build(torch.float32)
            if accelerate is None:
                model.to(place)
            elif place == "cuda":
                model.lm_head.to(place)
                hook = accelerate.hooks.AlignDevicesHook(execution_device=torch.device("cuda:0"))
                accelerate.hooks.add_hook_to_module(model.lm_head, hook)
            target = Target(model)
            assert target.device.type == ("cpu" if in_parts else place)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                config = load_config(None, ["train.eagle.noise=0"]).train
                method = METHODS[kind](target, config, np.ones(target.vocab_size, np.int64))
            reader = FeatureReader(target, None, taps=method.taps, kv_layer=method.kv_layer)  # type: ignore[arg-type]
            batch = reader.read(examples)
            given = [batch.ids, batch.learned, *batch.hidden.values()]
            given += [] if batch.kv is None else [batch.kv.keys, batch.kv.values]
            assert {tensor.device.type for tensor in given} == {place}
            assert {w.device.type for w in method.module.parameters()} == {place}
            losses.append(method.loss(batch, torch.Generator().manual_seed(0)).total.item())
            drafts.append(method.drafts(batch, top_k=2).tolist())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert drafts[0] == drafts[1]
