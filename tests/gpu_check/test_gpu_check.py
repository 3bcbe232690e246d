"""gpu_check: everything runs once at tiny shapes; what is wrong is found, and costs no more."""

import json
import logging
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import interpreted
import pytest
import torch
from torch import Tensor

from mmspec import build_target, gpu_check
from mmspec.attention import ChunkCall
from mmspec.attention.conformance import Outcome, check
from mmspec.attention.matmul import Matmul
from mmspec.attention.rung import Rung
from mmspec.check.difference import Difference
from mmspec.check.run import PLAIN_BATCH, CheckReport, Comparison
from mmspec.drafters.draft_model import model as draft_model
from mmspec.errors import BackendWarning, ConfigError, ModelError
from mmspec.gpu_check import (
    SECTIONS,
    Setting,
    chunk_cells,
    exactness,
    has_failed,
    kernels,
    run,
    run_section,
    shares_of,
    smoke,
    speed,
    timings,
)
from mmspec.gpu_check.bars import LEAST_CHANCE, bars
from mmspec.gpu_check.exactness import chance
from mmspec.gpu_check.recorder import Recorder, SectionResult, plain
from mmspec.gpu_check.replay import Acceptance, Costs
from mmspec.gpu_check.report import summary_lines
from mmspec.gpu_check.sections import Section
from mmspec.gpu_check.setting import EARLY_BEGIN
from mmspec.gpu_check.tables import step_table
from mmspec.target import tower

assert interpreted
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check.py"
_SLOW = ("timings", "speed", "exactness", "train")


def small() -> Setting:
    """Its time runs from now on."""
    return Setting(torch.device("cpu"), is_small=True)


def section_of(name: str, setting: Setting) -> SectionResult:
    return run_section(name, SECTIONS[name], setting)


def kernels_section() -> SectionResult:
    return section_of("kernels", small())


def made(check: Callable[[Setting, Recorder], None], out: Path | None = None) -> SectionResult:
    return run_section("made", Section("", check, 1.0), small(), out=out)


def test_a_run_writes_and_prints_what_its_sections_found(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "found.json"
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--small", "--out", str(out)]
    command += ["--only", "smoke"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "smoke      passed" in run.stdout
    found = json.loads(out.read_text())
    assert found["machine"]["torch"] == torch.__version__
    assert found["device"] == "cpu" and found["gpu"] is None and found["is_small"]
    assert list(found["sections"]) == ["smoke"]
    assert found["sections"]["smoke"]["status"] == "passed"


def test_every_section_passes_and_writes_what_it_found(tmp_path: Path) -> None:
    """One after the other in this process, where what they import is there."""
    sections: dict[str, Any] = {}
    for name in shares_of([]):
        out = tmp_path / f"{name}.json"
        run_section(name, SECTIONS[name], small(), out=out)
        section = sections[name] = json.loads(out.read_text())["sections"][name]
        assert section["status"] == "passed", (name, section["error"] or section["failures"])
        assert section["found"] and section["seconds"] > 0
    assert sections["plain"]["found"]["overlap"]["median"] > 0
    attention = sections["kernels"]["found"]["attention"]
    assert attention["matmul"]["passed"] == 3 and len(attention["matmul"]["declined"]) == 1
    assert sections["kernels"]["found"]["noise"]["differing"] == 0
    ways = {row["way"] for row in sections["exactness"]["found"]["prompt_lookup"]}
    assert {"prompt_lookup, alone", "stress, batched", "transformers' generate"} <= ways
    steps = sections["timings"]["found"]["qwen2.5-7b, tiny at 64"]
    assert set(steps["eager"]["score_ms"]) == set(steps["expected_ms"]) == {"1", "4"}
    assert steps["eager"]["roofline_share"] > 0
    assert sections["timings"]["found"]["what"] == "random weights: timings only"
    drafts = sections["timings"]["found"]["qwen2.5-7b, tiny at 64, drafts"]["eager"]
    assert {"same", "int4"} <= set(drafts)
    assert sections["attention"]["found"]["table"][0]["chosen"] == "flash_cpu"
    speed = sections["speed"]["found"]
    assert speed["enlarged"]["same_best_share"] == 1.0
    assert speed["quoting, 1k"]["mmspec prompt_lookup"]["is_plain_text"]
    assert speed["replay"] and all("replayed" in row["label"] for row in speed["replay"])


def test_a_drafter_that_does_not_load_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, drafter: str, overrides: list[str]) -> None:
        raise ModelError(f"{drafter} with {overrides[-1]}")

    monkeypatch.setattr(exactness, "load", refuse)
    result = run_section("exactness", SECTIONS["exactness"], Setting(torch.device("cpu")))
    asked = [*exactness.DRAFTERS, *(f"{name}, bitwise" for name in exactness.DRAFTERS)]
    told = {failure.partition(": ")[0]: failure for failure in result.failures}
    assert {*asked} <= {*told}
    assert all(f"ModelError: {name.partition(',')[0]} with" in told[name] for name in asked)


def test_a_run_that_is_ended_still_says_what_it_found(tmp_path: Path) -> None:
    """And resumes what was never begun."""
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--small", "--resume"]
    command += ["--only", "exactness", "--out", str(tmp_path / "found.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        told = ""
        while "exactness: up to" not in told:
            told += run.stdout.readline()
        run.terminate()
        told += run.stdout.read()
    assert run.returncode == 143
    assert "exactness  running" in told and "written to" in told


def test_a_run_that_is_ended_while_kernels_are_compiled_ends_what_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = []

    class Compiling:
        def __init__(self, log: Path) -> None:
            pass

        def wait(self) -> None:
            sys.exit(143)

        def stop(self) -> None:
            stopped.append(self)

    monkeypatch.setattr(gpu_check, "Compiling", Compiling)
    monkeypatch.setattr(signal, "signal", lambda *told: None)
    own = [str(SCRIPT), "--only", "kernels", "--out", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", own)
    script = runpy.run_path(str(SCRIPT))
    with pytest.raises(SystemExit, match="143"):
        script["conduct"](script["parse"]())
    assert len(stopped) == 1


def test_a_wrong_attention_kernel_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off by a percent, on trees that have siblings alone."""
    right = Matmul.attend

    def attend(self: Matmul, query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = right(self, query, *args, **kwargs)
        out[:, 1:] *= 1.01
        return out

    monkeypatch.setattr(Matmul, "attend", attend)
    result = kernels_section()
    assert result.status == "failed"
    assert len(result.failures) == 3
    assert all("attention by matmul" in what for what in result.failures)
    assert result.found["attention"]["flash_cpu"].passed  # type: ignore[index]
    assert any(
        "FAILED   attention by matmul" in x for x in summary_lines({"kernels": plain(result)})
    )
    assert has_failed({"kernels": plain(result)}, is_small=True)


def test_smoke_computes_convolutions_in_float32_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def texts(*args: Any) -> dict[str, list[tuple[int, ...]]]:
        seen.append(torch.backends.cudnn.allow_tf32)
        return {"none": []}

    monkeypatch.setattr(smoke, "_texts", texts)
    smoke.check(small(), Recorder(SectionResult(""), lambda: None))
    assert seen and not any(seen) and torch.backends.cudnn.allow_tf32


def test_attention_of_a_chunk_may_round_as_large_values_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first tokens of a text see few others, and values are up to 4 or 5."""
    attend = ChunkCall.attend

    def times(factor: float) -> list[str]:
        def attended(self: ChunkCall, *args: Any, **kwargs: Any) -> Tensor:
            return attend(self, *args, **kwargs) * factor

        monkeypatch.setattr(ChunkCall, "attend", attended)
        return made(chunk_cells.check).failures

    assert times(1 + 2.0**-7) == []
    assert len(times(float("nan"))) == len(chunk_cells._CELLS)


def test_wrong_attention_of_a_chunk_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last token before the chunk is not seen."""
    attend = ChunkCall.attend

    def late(self: ChunkCall, *args: Any, **kwargs: Any) -> Tensor:
        if self.committed:
            place = (self.start + 1, self.committed - 1, self.count)
            self = ChunkCall(*place, self.layers, self.reaches)
        return attend(self, *args, **kwargs)

    monkeypatch.setattr(ChunkCall, "attend", late)
    assert any("attention of a chunk" in what for what in kernels_section().failures)


@pytest.mark.parametrize("wrong", ["nan", "raises", "reads beyond"])
def test_other_ways_to_be_wrong_are_failures_too(
    monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    right = Matmul.attend

    def attend(self: Matmul, query: Tensor, keys: Tensor, values: Tensor, **kw: Any) -> Tensor:
        if wrong == "raises":
            raise RuntimeError("no kernel image is available")
        if wrong == "reads beyond":  # the slot before each row's own
            keys, values = keys.roll(1, 0), values.roll(1, 0)
        out = right(self, query, keys, values, **kw)
        return out * torch.nan if wrong == "nan" else out

    monkeypatch.setattr(Matmul, "attend", attend)
    result = kernels_section()
    assert result.status == "failed" and any("by matmul" in what for what in result.failures)


def test_a_backend_that_takes_long_is_left_out_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0

    def slow_matmul(rung: Rung, *args: Any, **options: Any) -> Outcome:
        nonlocal now
        now += 600.0 if rung.name == "matmul" else 0.1
        return check(rung, *args, **options)

    monkeypatch.setattr(kernels, "suite_check", slow_matmul)
    monkeypatch.setattr(kernels, "time", SimpleNamespace(monotonic=lambda: now))
    result = kernels_section()
    assert result.status == "passed"
    left_out = [what for what in result.missing if "no time" in what]
    assert left_out == ["attention by matmul: no time left for 3 cases"]
    tallies = result.found["attention"]
    assert tallies["sdpa"].passed == 3 and tallies["matmul"].passed == 1  # type: ignore[index]


def test_wrong_noise_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    noise_kernels = pytest.importorskip("mmspec.noise_kernels")
    right = noise_kernels.gumbel_at

    def gumbel_at(*args: Any, **kwargs: Any) -> Tensor:
        values = right(*args, **kwargs)
        values[:, 5] += 1e-3
        return values

    monkeypatch.setattr(noise_kernels, "gumbel_at", gumbel_at)
    result = kernels_section()
    assert result.status == "failed"
    assert [what.split(":")[0] for what in result.failures] == ["noise", "noise"]


def kv_stand_ins(monkeypatch: pytest.MonkeyPatch, *, off_by: int) -> None:
    """Modules with the kernels' interface; `off_by` slots."""

    def write(*args: Tensor, first: Tensor, counts: Tensor) -> None:
        for buffer, states in zip(args[:2], args[2:], strict=True):
            for row, (start, count) in enumerate(zip(first.tolist(), counts.tolist(), strict=True)):
                to = start + (off_by if count else 0)
                buffer[to : to + count] = states[row, :, :count].transpose(0, 1)

    class PathMover:
        def __init__(self, buffers: Sequence[Tensor]) -> None:
            self.buffers = buffers

        def move(self, moves: Sequence[tuple[int, Sequence[int]]]) -> None:
            for buffer in self.buffers:
                for end, path in moves:
                    for place, node in enumerate(path):
                        buffer[end + place] = buffer[end + node + off_by]

    modules = {
        "mmspec.kv.kernels": SimpleNamespace(write=write),
        "mmspec.kv.moves": SimpleNamespace(PathMover=PathMover, Move=lambda *move: move),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[misc]


def test_wrong_kv_kernels_are_failures_and_right_ones_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    kv_stand_ins(monkeypatch, off_by=0)
    assert kernels_section().status == "passed"
    kv_stand_ins(monkeypatch, off_by=1)
    failures = kernels_section().failures
    assert {what.split(":")[0] for what in failures} == {"kv write", "kv commit"}


def test_a_section_that_fails_loses_nothing_that_it_found(tmp_path: Path) -> None:
    out = tmp_path / "found.json"

    def breaks(setting: Setting, recorder: Recorder) -> None:
        recorder.found("early", 1)
        assert json.loads(out.read_text())["sections"]["made"]["found"] == {"early": 1}
        raise RuntimeError("out of memory")

    assert made(breaks, out).status == "error"
    saved = json.loads(out.read_text())["sections"]
    assert saved["made"]["found"] == {"early": 1}
    assert "RuntimeError: out of memory" in saved["made"]["error"]
    assert any("RuntimeError: out of memory" in x for x in summary_lines(saved))


def test_what_mmspec_warns_of_is_written_down_once() -> None:
    def warns(setting: Setting, recorder: Recorder) -> None:
        for _ in range(2):
            warnings.warn("attention by x failed", BackendWarning, stacklevel=1)
            logging.getLogger("mmspec.target.probe").warning("%s decodes otherwise", "Llama")
        warnings.warn("of no concern", UserWarning, stacklevel=1)
        recorder.found("ran", True)

    with pytest.warns(BackendWarning), pytest.warns(UserWarning, match="of no concern"):
        result = made(warns)
    assert result.status == "passed"
    assert result.missing == ["warns: attention by x failed", "warns: Llama decodes otherwise"]


def test_early_begin_is_suspected_where_nobody_else_is_at_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "why_no_early_begin", lambda setting: None)

    def breaks(setting: Setting, recorder: Recorder) -> None:
        recorder.doing("sdpa")
        assert recorder.result.doing == "sdpa"
        recorder.doing(None)
        raise RuntimeError("an illegal memory access")

    def works(setting: Setting, recorder: Recorder) -> None:
        assert recorder.result.doing == EARLY_BEGIN

    assert (made(breaks).doing, made(works).doing) == (EARLY_BEGIN, None)


@pytest.mark.parametrize(
    "section",
    ["smoke", "plain", *(pytest.param(n, marks=pytest.mark.slow) for n in _SLOW)],
)
def test_what_did_not_survive_an_early_begin_is_tried_without(
    section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, own = [], tower.quick_blocks

    def noted(model: Any, *, begins_early: bool = True, **options: Any) -> Any:
        told.append(begins_early)
        return own(model, begins_early=begins_early, **options)

    for module in (build_target, draft_model):
        monkeypatch.setattr(module, "quick_blocks", noted)
    setting = replace(small(), without=(EARLY_BEGIN,))
    result = section_of(section, setting)
    assert result.status == "passed", result.error or result.failures
    assert told and not any(told)


def test_an_attempt_that_fails_is_told_and_the_section_goes_on() -> None:
    def goes_on(setting: Setting, recorder: Recorder) -> None:
        with recorder.attempt("128k"):
            raise RuntimeError("out of memory")
        recorder.found("after", 1)

    result = made(goes_on)
    assert result.status == "failed"
    assert result.failures == ["128k: RuntimeError: out of memory"]
    assert "goes_on" in str(result.found["128k: traceback"]) and result.found["after"] == 1


def test_sections_are_chosen_by_name_in_their_own_order() -> None:
    assert list(shares_of(["attention", "kernels"])) == ["kernels", "attention"]
    assert list(shares_of([])) == [name for name in SECTIONS if not SECTIONS[name].is_extra]
    assert "train" not in shares_of([]) and "train" in shares_of([], trains=True)
    assert list(shares_of(["kernels"], trains=True)) == ["kernels", "train"]
    with pytest.raises(ConfigError, match="section 'atention': expected some of smoke"):
        shares_of(["atention"])


def test_a_missing_package_is_named_with_the_way_to_bring_it() -> None:
    code = f"""
import importlib.util, runpy, sys
own = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "omegaconf" else own(name)
sys.argv = ["gpu_check.py", "--device", "cpu"]
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    assert "pip install --no-deps --target build/packages omegaconf" in run.stderr


def test_a_rate_is_higher_only_beyond_chance() -> None:
    """Texts count: what parts one of them parts it in many ways of decoding."""
    none = dict.fromkeys(range(6), 0.0)
    assert chance(none, none) == 1
    assert chance({**none, 3: 1.0, 4: 1.0}, none) == 1 / 4
    assert chance(dict.fromkeys(range(6), 0.5), none) == 1 / 2**6 < LEAST_CHANCE
    assert chance(none, dict.fromkeys(range(6), 0.5)) == 1
    mixed = {0: 0.5, 1: 0.0, 2: 1.0, 3: 0.25}
    assert chance(mixed, {0: 0.0, 1: 0.5, 2: 0.0, 3: 0.0}) > LEAST_CHANCE


def test_texts_that_part_are_told_with_their_margins(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by rounding, one by more, and in bitwise mode each of them is a failure."""
    texts = (4, 5, "so ", "much", "many")
    parted = {
        0: Difference(3, *texts, "rounding", "a near tie", 0.01, 0.02, 0.03, 0.04),
        1: Difference(7, *texts, "bug", "beyond rounding"),
    }
    one = Comparison("lookup, alone", "greedy", 4, 2, 160, 120, 30, parted)
    report = CheckReport("bfloat16", (one, replace(one, way=PLAIN_BATCH, differences={})))
    monkeypatch.setattr(exactness, "DRAFTERS", ("lookup",))
    monkeypatch.setattr(exactness, "load", lambda *model, **options: None)
    monkeypatch.setattr(exactness, "_compared", lambda *engine, **options: report)
    monkeypatch.setattr(exactness, "_check_replays", lambda *engines: None)
    found = plain(section_of("exactness", small()))
    assert found["status"] == "failed" and found["error"] is None
    assert found["failures"] == [
        "lookup, lookup, alone, greedy, prompt 1, token 7: beyond rounding",
        *["bitwise, lookup, alone, greedy: 2 of 4 identical"],
        *[f"bitwise, {PLAIN_BATCH}, greedy: 2 of 4 identical"],
    ]
    told = found["found"]["lookup"][0]["first_differences"]
    assert [row["logit_error"] for row in told] == [0.03, None]
    rates = found["found"]["parted_per_token"]["greedy"]
    assert rates["speculative"] == {"parted": 2, "tokens": 122}
    verdicts = {bar.verdict for bar in bars({"exactness": found}) if bar.number == 4}
    assert verdicts == {"missed", "met", "not measured"}


def test_the_table_of_score_calls_has_no_row_of_drafts() -> None:
    graph = {"score_ms": {"1": 4.0, "64": 5.0}, "roofline_share": 0.75}
    scores = {"expected_ms": {"1": 3.0, "64": 3.5}, "graph": graph}
    found = {"llama at 4096": scores, "llama at 4096, drafts": {"graph": {"same": {256: 1.0}}}}
    assert [*step_table({"timings": {"found": found}})][2:] == [
        "| llama at 4096 | 4.00 (3.00) | 5.00 (3.50) | 0.75 |"
    ]


def test_what_there_is_no_time_or_room_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    over = replace(small(), is_small=False, minutes=0.0)
    assert over.lacks(seconds=1.0, num_bytes=2**40) == "no time left"
    assert replace(over, is_small=True).lacks(seconds=1.0) == ""
    assert replace(over, minutes=1.0).lacks(num_bytes=2**40) == "no room for 1024.0 GiB"
    monkeypatch.setattr(timings, "copy_bandwidth", lambda device, num_bytes: 1e9)
    told = Recorder(SectionResult(""), lambda: None)
    timings.check(over, told)
    assert told.result.missing[-1] == "low-bit products: no time left"


def test_speed_measures_each_task_once_by_worth() -> None:
    tasks = speed._tasks(Setting(torch.device("cpu")))
    told = [task.name.split(",")[0] for task in tasks]
    assert told == ["quoting", "open-ended", "transcribing", "describing", "quoting"]
    assert tasks[0].name == "quoting, 1k" != tasks[-1].name
    assert max(task.max_new_tokens for task in tasks) == 96


def test_replayed_speed_is_tokens_over_priced_steps() -> None:
    """3 steps: two score 2 drafted nodes, one none; four drafts of one node, one of 20."""
    seen = Acceptance("d", "t", new_tokens=8, scored={2: 2, 0: 1}, drafts={1: 4, 20: 1})
    costs = Costs(score={1: 10.0, 4: 12.0}, draft={1: 2.0, 16: 3.0})
    assert costs.speed(seen) == pytest.approx(7 * 10 / (2 * 12 + 10 + 4 * 2 + 3))


@pytest.mark.slow
def test_the_reference_target_gets_a_draft_model_and_heads(tmp_path: Path) -> None:
    small = Setting(torch.device("cpu"), is_small=True)
    section = section_of("train", small)
    assert section.status == "passed", section.error or section.failures
    assert not section.missing
    methods = set(section.found["quoting, 1k"])
    for name in ("medusa", "eagle", "eagle3", "glide"):
        assert section.found[f"{name} head"].steps == 2
        assert f"mmspec {name}" in methods
