"""Section `exactness`: every way of decoding beside plain decoding, in bfloat16 on this device."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch

from mmspec.build import load
from mmspec.check.prompts import default_requests
from mmspec.check.run import PLAIN_BATCH, TRANSFORMERS, CheckReport, Comparison, run_check
from mmspec.check.stress import Stress
from mmspec.engine import Engine
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting
from mmspec.gpu_check.targets import check_replayed
from mmspec.target.load import load_model, load_processor, resolve_path

MODEL = "tiny-vlm"
DRAFTERS = (
    "prompt_lookup",
    "retrieval",
    "compressed_kv",
    "layer_skip",
    "cascade",
    "lookahead",
    "token_recycling",
)
_ROWS = 3
_TOKENS, _SEEDS = 48, (1, 2)  # of each text
_BITWISE = "decode.exactness=bitwise"
_LAST_S = 12.0  # of the time, for what comes behind the drafters
_SMALL = ("decode.max_nodes=5",)  # bitwise mode computes as many at every step
# So that they draft in a short text as well.
_OVERRIDES = (
    f"decode.max_rows={_ROWS}",
    "drafter.compressed_kv.max_share=1.0",
    "drafter.compressed_kv.budget=64",
)


@dataclass(frozen=True)
class Rate:
    """How often a text parts from the plain one, per token that it could part at."""

    parted: int
    tokens: int

    @property
    def per_token(self) -> float:
        return self.parted / self.tokens if self.tokens else 0.0


def chance(own: Mapping[object, float], other: Mapping[object, float]) -> float:
    """That `own` shares come out above `other` ones by as much or more, where neither is likelier
    to be the higher one of a text: of all ways to exchange them text by text, the share that does.
    A text's near ties part it in many ways at once, so that texts count, and not their partings."""
    differences = [d for text in own if text in other if (d := own[text] - other[text])]
    found = sum(differences) - 1e-9
    signs = list(product((1, -1), repeat=len(differences)))
    return sum(
        sum(sign * d for sign, d in zip(some, differences, strict=True)) >= found for some in signs
    ) / len(signs)


def check(setting: Setting, recorder: Recorder) -> None:
    """Greedy and sampled, alone and in a batch, text and pictures, each drafter."""
    path = resolve_path(MODEL)
    dtype = torch.float32 if setting.is_small else torch.bfloat16
    model = load_model(path, dtype=str(dtype).removeprefix("torch."), device=str(setting.device))
    processor = load_processor(path)
    drafters = DRAFTERS[:1] if setting.is_small else DRAFTERS

    def engine(name: str, *overrides: str) -> Engine:
        own = [*_overrides(setting), *overrides]
        return load(model, processor, drafter=name, overrides=own)

    compared: list[Comparison] = []
    longest_s = 0.0  # of a drafter
    for name in drafters:  # by turns, so that there is something of both when the time is over
        if setting.left_s < longest_s + _LAST_S and compared:
            recorder.missing(f"{name}: no time left")
            continue
        begun = time.monotonic()
        with recorder.attempt(name):
            report = _compared(engine(name), setting, is_stressed=name == drafters[0])
            compared += report.comparisons
            recorder.found(name, [_row(one) for one in report.comparisons])
            _check_bugs(report, recorder, name)
            recorder.found("parted_per_token", _rates(compared))
        with recorder.attempt(f"{name}, bitwise"):
            _check_bits(name, engine(name, _BITWISE), setting, recorder)
        longest_s = max(longest_s, time.monotonic() - begun)
    recorder.found("dtype", str(dtype))
    with recorder.attempt("bitwise mode by graphs"):
        by_graphs, by_launches = (
            engine(drafters[0], _BITWISE, f"decode.cuda_graphs={graphs}")
            for graphs in ("auto", "never")
        )
        _check_replays(by_graphs, by_launches, setting, recorder)


def _overrides(setting: Setting) -> list[str]:
    return [*_OVERRIDES, *(_SMALL if setting.is_small else ()), *setting.overrides]


def _check_bits(name: str, engine: Engine, setting: Setting, recorder: Recorder) -> None:
    report = _compared(engine, setting, is_stressed=False)
    own = [one for one in report.comparisons if one.way != TRANSFORMERS]
    recorder.found(f"{name}, bitwise", [_row(one) for one in own])
    for one in own:
        recorder.check(
            one.identical == one.texts,
            f"bitwise, {one.way}, {one.sampling}: {one.identical} of {one.texts} identical",
        )


def _check_replays(
    by_graphs: Engine, by_launches: Engine, setting: Setting, recorder: Recorder
) -> None:
    """Every bit of the logits by which a batch's tokens were chosen, replayed and launch by
    launch."""
    assert by_graphs.inputs is not None
    tokens = 4 if setting.is_small else 32
    requests = [
        replace(request, temperature=0.0, output_logits=True, max_new_tokens=tokens)
        for request in default_requests(by_graphs.inputs)[:_ROWS]
    ]
    pairs = zip(by_graphs.generate(requests), by_launches.generate(requests), strict=True)
    same = [
        one.logits is not None and other.logits is not None and one.logits.equal(other.logits)
        for one, other in pairs
    ]
    recorder.check(
        all(same), f"bitwise, replayed and launched: {sum(same)} of {len(same)} identical"
    )
    check_replayed(by_graphs.graph_info, "bitwise", setting, recorder)


def _compared(engine: Engine, setting: Setting, *, is_stressed: bool) -> CheckReport:
    assert engine.inputs is not None
    requests = default_requests(engine.inputs)
    stressed = None
    if is_stressed:
        stress = Stress(engine.target.vocab_size)
        own = _overrides(setting)
        stressed = load(engine.target.model, drafter=stress, overrides=own), stress
    return run_check(
        engine,
        requests[1:4:2] if setting.is_small else requests,
        seeds=() if setting.is_small else _SEEDS,
        sampling={"temperature": 1.0, "top_k": 0},
        max_new_tokens=6 if setting.is_small else _TOKENS,
        stressed=stressed,
    )


def _row(one: Comparison) -> dict[str, object]:
    rate = _rate([one])
    return {
        "way": one.way,
        "sampling": one.sampling,
        "texts": one.texts,
        "identical": one.identical,
        "tokens": one.tokens,
        "accepted": one.accepted,
        "parted_per_token": rate.per_token,
        "first_differences": [
            {
                "prompt": prompt,
                "token": found.token,
                "verdict": found.verdict,
                "why": found.why,
                "plain_margin": found.plain_margin,
                "other_margin": found.other_margin,
                "logit_error": found.error,
                "rounding_bound": found.bound,
            }
            for prompt, found in one.differences.items()
        ],
    }


def _rate(comparisons: Sequence[Comparison]) -> Rate:
    parted = sum(len(one.differences) for one in comparisons)
    return Rate(parted, parted + sum(one.same_tokens for one in comparisons))


def _check_bugs(report: CheckReport, recorder: Recorder, name: str) -> None:
    for one in report.comparisons:
        for prompt, found in one.differences.items():
            recorder.check(
                found.verdict != "bug",
                f"{name}, {one.way}, {one.sampling}, prompt {prompt}, token {found.token}: "
                f"{found.why}",
            )


def _rates(compared: Sequence[Comparison]) -> dict[str, dict[str, object]]:
    """How often drafters part from the plain texts, and how often a plain batch does."""
    rates: dict[str, dict[str, object]] = {}
    for is_greedy in (True, False):
        of = [one for one in compared if (one.sampling == "greedy") == is_greedy]
        plain = [one for one in of if one.way == PLAIN_BATCH]
        own = [one for one in of if one.way not in (PLAIN_BATCH, TRANSFORMERS)]
        rates["greedy" if is_greedy else "T=1"] = {
            "speculative": _rate(own),
            f"plain, {_ROWS} rows": _rate(plain),
            "chance": chance(_shares(own), _shares(plain)),
        }
    return rates


def _shares(comparisons: Sequence[Comparison]) -> dict[object, float]:
    """By text, in which share of the ways to decode it it parted from the plain one."""
    ways, parted = Counter[object](), Counter[object]()
    for one in comparisons:
        for prompt in range(one.texts):
            ways[one.sampling, prompt] += 1
            parted[one.sampling, prompt] += prompt in one.differences
    return {text: parted[text] / count for text, count in ways.items()}
