"""The loop: it learns, and a run that was stopped anywhere ends as one that was not."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmspec.errors import ConfigError
from mmspec.target import Target
from mmspec.training.checkpoint import load_checkpoint
from mmspec.training.heads import loop
from mmspec.training.heads.acceptance import Acceptance
from mmspec.training.heads.eagle import EagleMethod
from mmspec.training.heads.eagle3 import Eagle3Method
from mmspec.training.heads.examples import Example
from mmspec.training.heads.features import FeatureReader
from mmspec.training.heads.glide import GlideMethod
from mmspec.training.heads.loop import CHECKPOINT, Report, check_begun, read_log, train
from mmspec.training.heads.medusa import MedusaMethod
from mmspec.training.heads.method import HeadMethod
from mmspec.training.heads.optimizer import Optimizer
from mmspec.training.heads.settings import Settings
from mmspec.training.schedule import rate_share

RUN: dict[str, object] = {"head": "eagle", "data": "x"}


def examples() -> list[Example]:
    draw = np.random.default_rng(0)
    lengths = [6, 12, 9, 20, 7, 11, 8]
    drawn = [draw.integers(3, 112, length) for length in lengths]
    return [
        Example(str(n), tokens, np.arange(len(tokens)) >= 3, 3) for n, tokens in enumerate(drawn)
    ]


def eagle(target: Target) -> EagleMethod:
    torch.manual_seed(0)
    return EagleMethod(target, depth=2)


def take(
    target: Target,
    folder: Path,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    stop_after: int | None = None,
    resume: bool = True,
    run: dict[str, object] = RUN,
    accumulate: int = 2,
) -> tuple[HeadMethod, list[Report]]:
    method = eagle(target)
    all_of_it = examples()
    reports = train(
        method,
        FeatureReader(target, None, taps=method.taps),  # type: ignore[arg-type]
        all_of_it[1:],
        all_of_it[:1],
        settings=Settings(
            steps=steps,
            minutes=minutes,
            rate=1e-2,
            batch_tokens=24,
            accumulate=accumulate,
            seed=3,
        ),
        folder=folder,
        dtype=torch.float32,
        run=run,
        resume=resume,
    )
    found = []
    for report in reports:
        found.append(report)
        if stop_after is not None and report.step == stop_after:
            reports.close()  # type: ignore[attr-defined]
    return method, found


def weights(method: HeadMethod) -> list[torch.Tensor]:
    return list(method.module.state_dict().values())


def test_a_stopped_run_ends_with_the_same_bits_as_one_that_was_not(
    target: Target, tmp_path: Path
) -> None:
    whole, reports = take(target, tmp_path / "whole", steps=9)
    take(target, tmp_path / "parts", steps=9, stop_after=2)
    take(target, tmp_path / "parts", steps=9, stop_after=7)
    parts, rest = take(target, tmp_path / "parts", steps=9)
    assert [report.step for report in rest] == [8, 9]
    for own, expected in zip(weights(parts), weights(whole), strict=True):
        assert torch.equal(own, expected)
    logs = [read_log(tmp_path / name / "training" / "log.jsonl") for name in ("whole", "parts")]
    for line in (*logs[0], *logs[1]):
        line["trained_s"] = line["tokens_per_s"] = 0
    assert logs[0] == logs[1] and len(logs[0]) == 10
    assert reports[-1].epoch > 0 and reports[-1].progress == 1.0
    assert reports[0].acceptance and reports[-1].acceptance


def test_a_run_of_some_minutes_counts_its_steps_and_its_evaluations(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a minute a step, and as much an evaluation; it is saved every two minutes, when it stops
    and when it ends."""
    now, saved, save = count(step=30.0), list[float](), loop._State.save

    def saving(self: loop._State, *args: Any, **options: Any) -> None:
        saved.append(self.trained_s)
        save(self, *args, **options)

    monkeypatch.setattr(loop, "clock_s", lambda device: next(now))
    monkeypatch.setattr(loop._State, "save", saving)
    _, reports = take(target, tmp_path, minutes=10.0, stop_after=7)
    begun, *steps = [*reports, *take(target, tmp_path, minutes=10.0)[1]]
    assert (begun.trained_s, begun.tokens) == (0.0, 0)
    spent, read, expected = 0.0, 0, [0.0]
    for report in steps:
        assert report.progress == min((spent + 30.0) / 600, 1.0)
        spent += 60.0 if report.acceptance else 30.0
        assert report.trained_s == spent and report.tokens > read
        assert report.tokens_per_s == pytest.approx((report.tokens - read) / 30.0)
        read = report.tokens
        is_due = spent - expected[-1] > 120.0
        expected += [spent] * (is_due + (report.step == 7) + (report is steps[-1]))
    assert 600.0 <= spent <= 660.0 and steps[-1].acceptance
    assert saved == expected[1:] and len(saved) > 4


def test_what_was_evaluated_when_a_run_stopped_is_not_evaluated_again(
    target: Target, tmp_path: Path
) -> None:
    take(target, tmp_path, steps=20, stop_after=10)  # at half of the way, which is evaluated
    _, rest = take(target, tmp_path, steps=20)
    assert [report.step for report in rest if report.acceptance] == [12, 14, 16, 18, 20]


@pytest.mark.parametrize("steps", [10, 20])  # at the end, and at half of the way
def test_an_evaluation_that_was_interrupted_is_made_as_the_run_goes_on(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    evaluated, calls = loop.evaluate, list[int]()

    def interrupted(method: EagleMethod, *args: object, **options: int) -> Acceptance:
        calls.append(1)
        if len(calls) == {10: 11, 20: 7}[steps]:  # behind the tenth step
            raise KeyboardInterrupt
        return evaluated(method, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        take(target, tmp_path, steps=steps)
    _, rest = take(target, tmp_path, steps=steps)
    assert (rest[0].step, rest[0].progress) == (10, 10 / steps) and rest[0].acceptance
    log = read_log(tmp_path / "training" / "log.jsonl")
    assert [line["step"] for line in log] == [*range(steps + 1)]
    assert log[-1]["acceptance"]


KINDS: dict[str, Callable[[Target], HeadMethod]] = {
    "medusa": lambda target: MedusaMethod(target, num_heads=4),
    "eagle": lambda target: EagleMethod(target, noise=0.0),
    "eagle3": lambda target: Eagle3Method(target, np.ones(112, np.int64), steps=4),
    "glide": lambda target: GlideMethod(target, max_drafts=1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_counts_as_much_in_a_short_batch_as_in_a_long_one(
    target: Target, tmp_path: Path, kind: str
) -> None:
    """Two batches of one text each are one batch of two: to the gradients of each part of a loss,
    of which deeper drafts have fewer tokens."""
    texts = [examples()[0], examples()[3]]  # of 6 and 20 tokens
    texts[0] = replace(texts[0], learned=np.ones(6, np.bool_))
    losses, gradients = [], []
    for name, tokens, accumulate in (("two", 20, 2), ("one", 40, 1)):
        torch.manual_seed(0)
        method = KINDS[kind](target)
        settings = Settings(steps=1, batch_tokens=tokens, accumulate=accumulate)
        reader = FeatureReader(target, None, taps=method.taps, kv_layer=method.kv_layer)  # type: ignore[arg-type]
        reports = train(
            method,
            reader,
            texts,
            [],
            settings=settings,
            folder=tmp_path / name,
            dtype=torch.float32,
            run=RUN,
        )
        losses.append(list(reports)[-1].losses)
        saved = load_checkpoint(tmp_path / name / "training" / CHECKPOINT, torch.device("cpu"))
        gradients.append([one["exp_avg"] for one in saved["optimizer"]["state"].values()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_that_teaches_a_head_nothing_costs_no_training(
    target: Target, tmp_path: Path, kind: str
) -> None:
    """A prompt of one token that is answered by one: no token has been chosen before it."""
    short, long = (replace(one, learned=one.learned.copy()) for one in examples()[:2])
    short = replace(short, tokens=short.tokens[:2], learned=np.array([False, True]), num_before=1)
    torch.manual_seed(0)
    method = KINDS[kind](target)
    reader = FeatureReader(target, None, taps=method.taps, kv_layer=method.kv_layer)  # type: ignore[arg-type]
    for steps in (2, 4):  # taken up again
        reports = train(
            method,
            reader,
            [short, long],
            [],
            settings=Settings(steps=steps, batch_tokens=12),  # a batch each
            folder=tmp_path,
            dtype=torch.float32,
            run=RUN,
            resume=steps > 2,
        )
        losses = [report.losses["loss"] for report in reports if report.losses]
        assert len(losses) == 2 and max(losses) > 0
        assert min(losses) == 0 or kind == "glide"  # which needs no token that was chosen
    assert all(weight.isfinite().all() for weight in method.module.state_dict().values())


def test_a_training_of_an_older_version_which_wrote_less_of_it_goes_on(
    target: Target, tmp_path: Path
) -> None:
    take(target, tmp_path, steps=1)
    _, reports = take(target, tmp_path, steps=2, run={**RUN, "held_out": 0.05})
    assert [report.step for report in reports] == [2]
    with pytest.raises(ConfigError, match=r"began with held_out=0\.05, got 0\.1"):
        take(target, tmp_path, steps=3, run={**RUN, "held_out": 0.1})


def test_it_learns_what_it_is_shown(target: Target, tmp_path: Path) -> None:
    before, reports = eagle(target), take(target, tmp_path, steps=30, accumulate=1)[1]
    losses = [report.losses["loss"] for report in reports if report.losses]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert set(reports[-1].losses) == {"loss", "states", "tokens"}
    from mmspec.drafters.eagle.checkpoint import load

    stored = load(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o044 == 0o044
    assert not torch.equal(stored.fc.weight, before.module.fc.weight)  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in target.model.parameters())


def test_an_interrupt_within_a_step_costs_that_step_alone(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(target, tmp_path, steps=9, stop_after=4)
    read = FeatureReader.read
    calls = iter(range(100))

    def interrupted(self: FeatureReader, some: list[Example]) -> object:
        if next(calls) == 3:  # of the second step the second batch
            raise KeyboardInterrupt
        return read(self, some)

    monkeypatch.setattr(FeatureReader, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        take(target, tmp_path, steps=9)
    monkeypatch.undo()
    parts, rest = take(target, tmp_path, steps=9)
    assert [report.step for report in rest] == [6, 7, 8, 9]
    whole, _ = take(target, tmp_path / "whole", steps=9)
    for own, expected in zip(weights(parts), weights(whole), strict=True):
        assert torch.equal(own, expected)
    assert [line["step"] for line in read_log(tmp_path / "training" / "log.jsonl")] == [*range(10)]


def test_weights_that_are_half_written_are_not_kept(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(target, tmp_path, steps=9, stop_after=4)
    saved = (tmp_path / "training" / "checkpoint.pt").read_bytes()

    def half(self: Optimizer, rate: float) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Optimizer, "step", half)
    with pytest.raises(KeyboardInterrupt):
        take(target, tmp_path, steps=9)
    assert (tmp_path / "training" / "checkpoint.pt").read_bytes() == saved


def test_another_training_is_not_written_over(target: Target, tmp_path: Path) -> None:
    take(target, tmp_path, steps=2)
    assert check_begun(tmp_path, resume=True)
    with pytest.raises(ConfigError, match="--resume"):
        take(target, tmp_path, steps=3, resume=False)
    with pytest.raises(ConfigError, match=r"data='x', got 'y'"):
        take(target, tmp_path, steps=3, run={**RUN, "data": "y"})
    (tmp_path / "training" / "checkpoint.pt").write_bytes(b"cut")
    with pytest.raises(ConfigError, match="cannot be read as a checkpoint"):
        take(target, tmp_path, steps=3)


def test_a_line_that_a_kill_cut_off_is_no_report(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"step": 1}) + '\n{"step": 2')
    assert read_log(path) == [{"step": 1}]


def test_gradients_that_are_not_finite_change_nothing(target: Target) -> None:
    module = torch.nn.Linear(2, 2)
    before = module.weight.clone()
    optimizer = Optimizer(module, clip=1.0, weight_decay=0.1)
    module.weight.grad = torch.full((2, 2), torch.nan)
    assert not optimizer.step(0.1) and torch.equal(module.weight, before)
    assert module.weight.grad is None
    module.weight.grad = torch.full((2, 2), 7.0)
    assert optimizer.step(0.1) and not torch.equal(module.weight, before)


def test_a_run_that_goes_on_decays_weights_as_it_is_told(target: Target) -> None:
    module = torch.nn.Linear(2, 2)
    begun = Optimizer(module, clip=1.0, weight_decay=0.0)
    state = begun.state_dict()
    again = Optimizer(module, clip=1.0, weight_decay=0.5)
    again.load_state_dict(state)
    module.weight.grad = torch.zeros(2, 2)
    before = module.weight.detach().clone()
    again.step(0.1)
    assert torch.allclose(module.weight, before * (1 - 0.1 * 0.5))


def test_the_rate_rises_and_falls() -> None:
    shares = [rate_share(p / 20, warmup=0.2, decay="cosine") for p in range(21)]
    assert shares[4] == max(shares) == 1.0 and shares[2] == 0.5 and 0 < shares[20] <= 1e-3
    assert rate_share(0.6, warmup=0.2, decay="linear") == pytest.approx(0.5)
    assert rate_share(1.0, warmup=0.2, decay="none") == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"steps": 1, "minutes": 1.0},
        {"steps": 0},
        {"minutes": -1.0},
        {"steps": 1, "rate": 0.0},
        {"steps": 1, "decay": "slow"},
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Settings(**wrong)  # type: ignore[arg-type]


def test_a_draft_outside_of_the_heads_vocabulary_is_never_made(target: Target) -> None:
    counts = np.zeros(112, np.int64)
    counts[[7, 50]] = 1
    method = Eagle3Method(target, counts, steps=2, vocabulary=2)
    batch = FeatureReader(target, None, taps=method.taps).read(examples())  # type: ignore[arg-type]
    drafts = method.drafts(batch, top_k=3)
    assert set(drafts.unique().tolist()) == {-1, 7, 50}
