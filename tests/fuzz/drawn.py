"""Rules that keep a distribution and not the seed's own text: what holds of each text all the same.

The same seed gives the same text again, alone as in a batch; what need not be drawn is plain
decoding's; every token is one that the target may say, with the log-probability that a plain
reading of the text finds; and a drafter that is the target is always right.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from families import FAMILIES
from families.vision import FIRST_MEDIA_TOKEN
from matrix import dflash, model_of
from medusa_heads import unfitted
from sampling_drafter import SamplingDrafter
from torch import Tensor

from mmspec.drafters.compressed_kv import CompressedKV
from mmspec.drafters.dflash import DFlash
from mmspec.drafters.draft_model import DraftModel
from mmspec.drafters.eagle import Eagle
from mmspec.drafters.glide import Glide
from mmspec.drafters.medusa import Medusa
from mmspec.engine import Engine
from mmspec.requests import Result

from .cases import Case
from .drafting import draft_model, fitted, glide_head
from .judge import alone, differences, rounding_of
from .play import PLAYS

RULES = ("speculative", "recursive", "block", "typical_lossy")
OF_TREES = ("recursive", "typical_lossy")
_SAMPLING = {"temperature", "top_k", "top_p", "min_p", "seed", "sample", "n", "max_new_tokens"}
_SAMPLING |= {"logprobs", "logprobs_of", "prompt_logprobs", "output_scores", "output_logits"}
_SAMPLING |= {"ignore_eos", "skip_special_tokens", "do_sample"}
PLAYED = ("batch", "one_by_one", "as_room_comes", "arriving", "streams", "threads")


class Drawing(NamedTuple):
    """`make` gives a drafter that draws; each time the same one, anew."""

    make: Callable[[], Any]
    is_target: bool = False  # in a model of its own, and draws chains
    reads_prompts: bool = False  # by their states, which a reused beginning has not


def drawing(draw: random.Random, family: str, rule: str, vocab_size: int) -> Drawing:
    widths = [(), (1, 1), (1,)] if rule not in OF_TREES else [(), (2, 1), (1, 1, 3), (3,), (2, 2)]
    growth: dict[str, Any] = {
        "draw": "sample",
        "profile": draw.choice(widths),
        "min_confidence": draw.choice([0.0, 0.05]),
    }
    kind = draw.choice(
        ["same", "same", "padded", "gemma3_text", "lfm2", "compressed", "eagle", "glide", "medusa"]
        + ["dflash"]
        + ["hashed"] * 3
    )
    model = model_of(family, "float64")
    growth_of_models = {**growth, "max_depth": draw.choice([1, 3, 5]), "top_k": 4}
    if kind == "compressed":
        policy = draw.choice(["window", "snapkv", "topk_chunks"])
        kept = {"policy": policy, "budget": draw.choice([8, 200]), "recent": 5, "max_share": 1.0}
        return Drawing(lambda: CompressedKV(**kept, **growth_of_models))
    if kind == "eagle":
        head = fitted(model, draw.choice([1, 3]))
        return Drawing(lambda: Eagle(head, **growth_of_models), reads_prompts=True)
    if kind == "glide":
        head = glide_head(family, "float64")
        return Drawing(lambda: Glide(head, **growth_of_models))
    if kind == "medusa":
        heads = unfitted(model, spread=0.02, has_own_heads=draw.random() < 0.5)
        return Drawing(lambda: Medusa(heads, **growth))
    if kind == "dflash":
        head = dflash(family, "float64")
        return Drawing(lambda: DFlash(head, **growth), reads_prompts=True)
    if kind == "hashed":
        spread, own = draw.choice([0.3, 3.0]), draw.choice([(1, 1), (1, 1, 1), (1,)])
        wide = draw.choice([(3, 2), (2,), own])
        widths_here = wide if rule in OF_TREES else own
        return Drawing(
            lambda: SamplingDrafter(lambda ids: spread * _hashed(ids, vocab_size), widths_here)
        )
    pair = draft_model(kind, family, "float64")
    is_target = (
        kind == "same"
        and FAMILIES[family].kind == "text"
        and max(growth["profile"], default=1) == 1
    )
    return Drawing(lambda: DraftModel(*pair, **growth_of_models), is_target)


def _hashed(tokens: Any, vocab_size: int) -> Tensor:
    seed = hash(tuple(tokens[-3:])) % 2**31
    return torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed))


def played_drawn(
    draw: random.Random,
    make_engine: Callable[[random.Random], Engine],
    plain: Engine,
    cases: list[Case],
    told: list[str],
    *,
    is_target: bool,
) -> Iterator[tuple[Result, list[str]]]:
    """Each case's answer, and what is wrong with it. `is_target`: so is the drafter, which draws
    chains."""
    engine, again = make_engine(draw), make_engine(draw)
    play = draw.choice(PLAYED)
    told.append(f"{play} of {len(cases)} by {engine!r}")
    answers = PLAYS[play](engine, cases, draw)
    for case, got in zip(cases, answers, strict=True):
        is_fair = is_target and engine._rule.is_lossless
        wrong = list(_refused(case, got)) if is_fair else []
        is_drawn = case.request().asks_for_sampling and case.how.get("speculate") is not False
        is_short = got.error is not None or case.cancel_after is not None
        if is_drawn:
            repeated = again.generate([replace(case, cancel_after=None).request()])[0].samples
        else:
            repeated = tuple(alone(plain, case, sample) for sample in case.samples)
        kept = {"exact": rounding_of(plain), "logprobs_of": case.options.get("logprobs_of", "raw")}
        by_number = {one.sample: one for one in got.samples}
        for expected in repeated:
            said = by_number.get(expected.sample)
            if said is None:
                wrong.append(f"sample {expected.sample} is missing: {got.error!r}")
                continue
            compared = differences(expected, said, may_close=is_short, **kept)  # type: ignore[arg-type]
            wrong += [f"sample {expected.sample}, again: {each}" for each in compared]
            wrong += _unlikely(plain, case, said)
        yield got, wrong


def _unlikely(plain: Engine, case: Case, said: Result) -> Iterator[str]:
    """Tokens that the target could not have said, or not with these log-probabilities."""
    if not said.tokens or said.logprobs is None:
        return
    values = [one.chosen.logprob for one in said.logprobs]
    if not all(value > -torch.inf for value in values):
        yield f"log-probabilities {values} of {said.tokens}"
    has_media = set(case.prompt) - {"input_ids", "attention_mask"}
    is_raw = case.options.get("logprobs_of", "raw") == "raw"
    if not is_raw or has_media or max(said.tokens) >= FIRST_MEDIA_TOKEN:
        return
    ids = torch.cat([case.prompt["input_ids"], torch.tensor([said.tokens])], dim=1)
    read = plain.generate({"input_ids": ids}, max_new_tokens=1, prompt_logprobs=0).prompt_logprobs
    assert read is not None
    of_text = [one.chosen.logprob for one in read[-len(said.tokens) :] if one is not None]
    off = max(abs(a - b) for a, b in zip(values, of_text, strict=True))
    if not off < rounding_of(plain):
        yield f"log-probabilities {values}, read again {of_text}"


def _refused(case: Case, got: Result) -> Iterator[str]:
    """Of chains that the target itself drew, where the request leaves it as it is."""
    is_drawn = case.request().asks_for_sampling
    is_left = not case.made and not case.options.keys() - _SAMPLING
    if not (is_drawn and is_left and got.finish_reason == "length"):
        return
    for sample in got.samples:
        for name, count in sample.stats.by_drafter.items():
            if count.accepted < count.proposed:
                yield f"sample {sample.sample}: {count} of {name}, which is the target"
