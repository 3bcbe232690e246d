"""A scenario: a model, an engine and rounds of cases, all of it from one seed."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from draft_models import letters
from families import FAMILIES
from matrix import has_states, model_of
from torch import Tensor

from mmspec.build import build_engine, probed_target
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.engine import Engine
from mmspec.errors import ConfigError, ModelError
from mmspec.kv import KVCache
from mmspec.requests import Result
from mmspec.verify import VERIFIERS

from .cases import Case, Inputs, draw_case, draw_prompt, extended
from .drafting import AnyDrafter, Truths, draw_drafters
from .judge import alone, by_transformers, differences, is_tie, leaks
from .play import PLAYS
from .sabotage import sabotaged
from .steering import LAST_LETTER
from .through import played_through

FEW_POSITIONS = 48
EXACT = {"float64": 1e-5, "float32": 1e-3}  # norms and running states are float32 in any dtype


@dataclass
class Report:
    """What came of a scenario."""

    seed: int
    title: str = ""
    wrong: list[str] = field(default_factory=list)
    refused: str | None = None  # why the engine could not be made
    tokens: int = 0
    accepted: int = 0
    requests: int = 0
    ties: int = 0  # answers in float32 that part where two tokens are as good


class Model(NamedTuple):
    """Which target."""

    family: str
    dtype: str
    has_few: bool  # positions


@cache
def small_model(family: str, dtype: str) -> Any:
    """With few positions."""
    model = FAMILIES[family].build(getattr(torch, dtype))
    config = model.config.get_text_config()
    config.max_position_embeddings = FEW_POSITIONS
    if family == "gpt2":
        table = model.transformer.wpe
        table.weight = torch.nn.Parameter(table.weight[:FEW_POSITIONS].clone())
    return model


@cache
def built(model: Model) -> Any:
    return (small_model if model.has_few else model_of)(model.family, model.dtype)


@cache
def probed_once(model: Model, attention: str, packed_weights: str) -> Any:
    """What is found out of a model before it is decoded takes longer than a scenario's texts."""
    decode = DecodeConfig(attention=attention, packed_weights=packed_weights)
    return probed_target(built(model), decode)


@cache
def plain_engine(model: Model) -> Engine:
    decode = DecodeConfig(max_nodes=0, controller="fixed", prefill_chunk=None, choosing="host")
    cache = CacheConfig(prefix_bytes=0, feature_bytes=0)
    config, probed = Config(decode=decode, cache=cache), probed_once(model, "auto", "auto")
    return build_engine(config, built(model), letters(), [], probed=probed)


def run(seed: int, *, family: str | None = None) -> Report:
    """Draws the scenario of this seed, plays it, and compares."""
    draw, report = random.Random(seed), Report(seed)
    drawn = draw.choice(list(FAMILIES))
    family = family or drawn
    dtype = draw.choice(["float64"] * 4 + ["float32"])
    has_few = FAMILIES[family].kind == "text" and draw.random() < 0.15
    model = Model(family, dtype, has_few)
    plain = plain_engine(model)
    truths: Truths = {}
    decode = _draw_decode(draw)
    cache = CacheConfig(
        prefix_bytes=draw.choice([0, 2**14, 2**17, 2**30]),
        feature_bytes=draw.choice([0, 2**10, 2**28]),
    )
    try:
        drafters = draw_drafters(draw, family, dtype, truths, plain.target.vocab_size)
        names = "+".join(drafter.name for drafter in drafters)
        report.title = f"{family} {dtype} {names} {decode} {cache}"
        config = Config(decode=decode, cache=cache)
        probed = probed_once(model, decode.attention, decode.packed_weights)
        engine = build_engine(config, plain.target.model, letters(), drafters, probed=probed)
    except (ConfigError, ModelError) as error:
        report.refused = str(error)
        return report
    with sabotaged(draw, engine) as done, _watched(engine) as caches:
        report.title += f" {done}"
        _play(draw, report, engine, plain, caches, model=model, truths=truths, drafters=drafters)
    return report


def _play(
    draw: random.Random,
    report: Report,
    engine: Engine,
    plain: Engine,
    caches: Sequence[KVCache],
    *,
    model: Model,
    truths: Truths,
    drafters: Sequence[AnyDrafter],
) -> None:
    """Some rounds of cases; `truths` are told what is right before it is asked for."""
    family, dtype, has_few = model
    is_greedy = engine._rule is VERIFIERS["greedy"]
    exact = EXACT["float32" if has_states(family) else dtype]
    texts: list[Inputs] = []
    for number in range(draw.choice([1, 1, 2, 3])):
        if draw.random() < 0.2 and not has_few and dtype == "float64":
            report.title += f" | round {number}: through transformers"
            report.wrong += played_through(draw, drafters, plain, family, report)
            continue
        cases = [
            _draw_case(draw, texts, plain, family, has_few, is_greedy)
            for _ in range(draw.choice([1, 2, 3, 4]))
        ]
        known = [[alone(plain, case, sample) for sample in case.samples] for case in cases]
        for case, results in zip(cases, known, strict=True):
            ids = tuple(case.prompt["input_ids"][0].tolist())
            for result in results:
                if result.seed is not None:
                    truths[ids, result.seed, result.sample] = result.tokens
        play = draw.choice(list(PLAYS))
        report.title += f" | round {number}: {play} of {len(cases)}"
        answers = PLAYS[play](engine, cases, draw)
        for place, (case, expected, got) in enumerate(zip(cases, known, answers, strict=True)):
            if "seed" in case.how and got.seed is not None:
                expected = [alone(plain, case, s, got.seed) for s in case.samples]
            wrong = _of_case(case, expected, got, exact)
            if wrong and dtype == "float32" and any(is_tie(plain, case, e, got) for e in expected):
                report.ties += 1
                wrong = []
            report.wrong += [f"round {number}, case {place} ({case}): {each}" for each in wrong]
            _count(report, got)
            if dtype == "float64" and draw.random() < 0.5:
                wrong = by_transformers(plain, case, expected[0])
                report.wrong += [f"round {number}, case {place} ({case}): {each}" for each in wrong]
        report.wrong += [f"round {number}: {each}" for each in leaks(engine, caches)]


def _of_case(case: Case, expected: list[Result], got: Result, exact: float) -> list[str]:
    by_number = {result.sample: result for result in got.samples}
    if expected[0].seed is None:
        return list(differences(expected[0], got, may_close=False, exact=exact))
    if len(by_number) != len(expected):
        return [f"{len(by_number)} samples of {len(expected)}: {got.error!r}"]
    told = {"logprobs_of": case.options.get("logprobs_of", "raw")}
    may_close = case.cancel_after is not None
    return [
        f"sample {right.sample}: {each}"
        for right in expected
        for each in differences(
            right, by_number[right.sample], may_close=may_close, exact=exact, **told
        )
    ]


def _count(report: Report, got: Result) -> None:
    for sample in got.samples:
        lengths = sample.stats.accepted_lengths
        report.requests += 1
        report.tokens += len(sample.tokens)
        report.accepted += sum(length * steps for length, steps in lengths.items())


def _draw_decode(draw: random.Random) -> DecodeConfig:
    return DecodeConfig(
        verifier=draw.choice(["coupled"] * 5 + ["greedy"]),
        controller=draw.choice(["fixed", "fixed", "auto"]),
        max_nodes=draw.choice([0, 1, 2, 5, 12, 20, 20, 20, 64]),
        max_rows=draw.choice([1, 2, 3, 8]),
        prefill_chunk=draw.choice([None, None, None, 1, 5, 5, 16, 16]),
        attention=draw.choice(["auto"] * 7 + ["model"]),
        exactness=draw.choice(["standard"] * 15 + ["bitwise"]),
        choosing=draw.choice(["auto", "device", "host"]),
        packed_weights=draw.choice(["auto"] * 7 + ["always", "never"]),
    )


def _draw_case(
    draw: random.Random,
    texts: list[Inputs],
    plain: Engine,
    family: str,
    has_few: bool,
    is_greedy: bool,
) -> Case:
    prompt = draw.choice(texts) if texts and draw.random() < 0.6 else None
    if prompt is None:
        prompt = draw_prompt(draw, family, most=FEW_POSITIONS - 1 if has_few else None)
    elif draw.random() < 0.6 and not (has_few and _room(prompt) < 4):  # a chat's next turn
        said = plain.generate(prompt, max_new_tokens=4, temperature=0.0, ignore_eos=True).tokens
        tail = [draw.randrange(3, LAST_LETTER) for _ in range(draw.randint(0, 5))]
        longer = extended(prompt, [*said[: draw.randint(0, 4)], *tail])
        prompt = longer if not has_few or _room(longer) > 4 else prompt
    texts.append(prompt)
    config = plain.target.model.generation_config
    room = _room(prompt) + draw.choice([0, 0, 0, 1]) if has_few else 10**6
    return draw_case(
        draw,
        prompt,
        config,
        lambda case: alone(plain, case, case.samples[0]),
        room=max(room, 1),
        is_greedy=is_greedy,
    )


def _room(prompt: Inputs) -> int:
    ids: Tensor = prompt["input_ids"]
    return FEW_POSITIONS - ids.shape[1]


@contextmanager
def _watched(engine: Engine) -> Iterator[list[KVCache]]:
    """The caches that the engine's target makes within it."""
    made: list[KVCache] = []
    target = engine._decoded
    new_cache = target.new_cache

    def noted(*args: Any, **kwargs: Any) -> KVCache:
        made.append(new_cache(*args, **kwargs))
        return made[-1]

    target.new_cache = noted  # type: ignore[method-assign]
    try:
        yield made
    finally:
        del target.new_cache
