"""bfloat16 and float16: in bitwise mode no bit differs, in standard mode logits by rounding alone,
and a text parts only where two tokens are as near as that."""

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmspec.build import build_engine
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.engine import Engine
from mmspec.noise import gumbel
from mmspec.requests import Result

from .architectures import OWN
from .cases import Case, Inputs, draw_prompt
from .drafting import Truths, draw_drafters
from .judge import alone, leaks, watched
from .models import Model, Probing, built, plain_engine, probed_once, speaking
from .play import PLAYS
from .report import Refused, Report, may_refuse
from .settings import draw_cache, draw_decode
from .shelf import Shelf

ROUNDING = {"bfloat16": 0.4, "float16": 0.15}  # of a logit of some 10: four times what is seen
PLAYED = ("batch", "one_by_one", "as_room_comes", "arriving", "streams", "threads", "prepared")


@cache
def _has_experts(family: str) -> bool:
    model = built(Model(family, "bfloat16", has_few=False))
    return any("expert" in name for name, _ in model.named_modules())


def play_rough(draw: random.Random, report: Report, folder: Path) -> None:
    family, dtype = draw.choice(OWN), draw.choice(["bfloat16", "float16"])
    model = Model(family, dtype, has_few=False)
    decode = replace(draw_decode(draw), verifier="coupled")
    decode.exactness = draw.choice(["bitwise", "standard"])
    report.title = f"{family} {dtype} {decode}"
    if decode.exactness == "standard" and _has_experts(family):
        raise Refused("of experts another one may be chosen by a tie")
    if decode.exactness == "bitwise":
        decode.max_rows, decode.max_nodes = min(decode.max_rows, 3), min(decode.max_nodes, 12)
    plain, truths = plain_engine(model), Truths()
    shelf = Shelf(folder, draw, plain, most=None)
    with may_refuse():
        drafters = draw_drafters(draw, family, dtype, truths, plain.target, shelf)
        report.title += f" {'+'.join(drafter.name for drafter in drafters)}"
        if decode.exactness == "bitwise":
            plain = _engine(model, replace(decode, controller="fixed"), CacheConfig(0, 0), [])
        engine = _engine(model, decode, draw_cache(draw), drafters)
    prompts = list(shelf.prompts)
    with watched([engine]) as caches:
        for number in range(draw.choice([1, 2])):
            report.begin(number, f"{dtype}, {decode.exactness}")
            cases = [_draw_case(draw, family, prompts) for _ in range(draw.randint(1, 4))]
            known = [[alone(plain, case, sample) for sample in case.samples] for case in cases]
            for case, results in zip(cases, known, strict=True):
                ids = tuple(case.prompt["input_ids"][0].tolist())
                for one in results:
                    truths[ids, one.seed or 0, one.sample] = one.tokens
            answers = PLAYS[draw.choice(PLAYED)](engine, cases, draw)
            for case, results, got in zip(cases, known, answers, strict=True):
                report.count(got)
                for one, said in zip(results, got.samples, strict=True):
                    compared = _bits(one, said)
                    if decode.exactness == "standard":
                        compared = _rounded(one, said, ROUNDING[dtype], case.options["temperature"])
                        report.ties += one.tokens != said.tokens
                    report.wrong += [f"round {number} ({case}): {each}" for each in compared]
        report.wrong += leaks(engine, caches)


def _engine(model: Model, decode: DecodeConfig, cache: CacheConfig, drafters: Any) -> Engine:
    probed = probed_once(model, Probing.of(decode))
    config = Config(decode=decode, cache=cache)
    return build_engine(config, built(model), speaking(), drafters, probed=probed)


def _draw_case(draw: random.Random, family: str, prompts: list[Inputs]) -> Case:
    is_known = bool(prompts) and draw.random() < 0.5
    prompts.append(draw.choice(prompts) if is_known else draw_prompt(draw, family))
    options: dict[str, Any] = {
        "temperature": draw.choice([0.0, 0.7, 1.0]),
        "top_k": 0,
        "seed": draw.randrange(99),
        "max_new_tokens": draw.choice([1, 6, 16]),
        "n": draw.choice([1, 1, 2]),
        "logprobs": 1,
        "output_logits": True,
    }
    how = {"namespace": draw.choice(["", "a"]), "speculate": draw.choice(["auto", True, True])}
    return Case(prompts[-1], options, how=how)


def _bits(expected: Result, got: Result) -> Iterator[str]:
    if got.tokens != expected.tokens:
        yield f"got {got.tokens}, plain {expected.tokens} ({got.error!r})"
    elif not torch.equal(_logits(got), _logits(expected)):
        yield f"logits are off by {(_logits(got) - _logits(expected)).abs().amax(1).tolist()}"
    elif got.logprobs != expected.logprobs:
        yield f"log-probabilities {got.logprobs}, plain {expected.logprobs}"


def _rounded(expected: Result, got: Result, most: float, temperature: float) -> Iterator[str]:
    if got.error is not None or got.seed is None:
        yield f"error {got.error!r}"
        return
    pairs = enumerate(zip(expected.tokens, got.tokens, strict=False))
    parted = next((i for i, (a, b) in pairs if a != b), None)
    count = len(expected.tokens) if parted is None else parted + 1
    off = (_logits(expected)[:count] - _logits(got)[:count]).abs().amax(dim=1)
    if off.max() > most:
        yield f"logits are off by {off.tolist()}: {got.tokens}, plain {expected.tokens}"
    if parted is None:
        if got.tokens != expected.tokens:
            yield f"got {got.tokens}, plain {expected.tokens}"
        return
    values = _logits(expected)[parted]
    if temperature:
        noise = gumbel(got.seed, parted, len(values), sample=got.sample)
        values = values / temperature + noise
    gap = float(values[expected.tokens[parted]] - values[got.tokens[parted]])
    if gap > 2 * most / (temperature or 1.0):
        yield f"parted at {parted} over {gap}: {got.tokens}, plain {expected.tokens}"


def _logits(result: Result) -> Tensor:
    assert result.logits is not None
    return result.logits
