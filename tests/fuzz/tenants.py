"""Namespaces that share an engine: what one of them says or is asked is neither drafted nor found
from another.

Each has an alphabet of its own, so that a draft with another's letters tells; what they all say now
and then is where such a draft would be found. Or they are asked the same, so that keys would be.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from families.vision import FIRST_MEDIA_TOKEN

from mmspec.build import build_engine
from mmspec.config import CacheConfig, Config
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.drafters.retrieval import Retrieval
from mmspec.encoders.media import split_media
from mmspec.engine import Engine
from mmspec.inputs import from_inputs
from mmspec.inputs.passages import Passage
from mmspec.requests import Request, Result
from mmspec.tree import TokenTree

from .architectures import OWN
from .cases import Inputs, draw_prompt, wanted
from .judge import differences, leaks, rounding_of, watched
from .models import Model, Probing, built, plain_engine, probed_once, speaking
from .play import at_once
from .report import Report, may_refuse
from .settings import draw_decode
from .steering import draw_sampling

SIZE = 20  # tokens of an alphabet
NAMES = ("", "a", "b")
KEPT_OUT = "reuse=False"  # these requests have an alphabet, too
ALPHABETS = {
    name: range(3 + SIZE * place, 3 + SIZE * (place + 1))
    for place, name in enumerate((*NAMES, KEPT_OUT))
}
COMMON = range(84, 89)  # said by all, one behind the other
PERIOD = 8  # tokens of an answer, of which the first are those


@dataclass(frozen=True)
class Asked:
    """One request, in the letters of `tenant`."""

    tenant: str
    request: Request
    expected: Result
    is_cut: bool
    media: frozenset[bytes]  # their digests

    @property
    def ids(self) -> list[int]:
        inputs: Any = self.request.prompt
        return list(inputs["input_ids"][0].tolist())

    @property
    def text(self) -> list[int]:
        """All that it may leave."""
        return [*self.ids, *self.expected.tokens]


def play_tenants(draw: random.Random, report: Report, folder: Path) -> None:
    family = draw.choice(OWN)
    model = Model(family, "float64", has_few=False)
    decode = draw_decode(draw)
    decode.verifier, decode.exactness = "coupled", "standard"
    decode.max_nodes = max(decode.max_nodes, 5)
    cache = CacheConfig(
        prefix_bytes=draw.choice([2**14, 2**17, 2**30]), feature_bytes=draw.choice([2**12, 2**28])
    )
    lookups = [
        PromptLookup(min_match=1, min_confidence=0.0, max_depth=6),
        Retrieval([], sources=["online", "generated"], min_confidence=0.0, min_match=1),
    ]
    drafters = draw.choice([lookups, lookups[1:]])
    report.title = f"{family} {decode} {cache}"
    plain, probed = plain_engine(model), probed_once(model, Probing.of(decode))
    with may_refuse():
        config = Config(decode=decode, cache=cache)
        engine = build_engine(config, built(model), speaking(), drafters, probed=probed)
    left: dict[str, list[Asked]] = {name: [] for name in ALPHABETS}
    prompts: list[tuple[str, Inputs]] = []
    shares_letters = draw.random() < 0.5
    with watched([engine]) as caches, _trees(engine) as trees:
        for number in range(draw.randint(2, 4)):
            report.begin(number, "namespaces")
            asked = [
                _draw(draw, plain, family, prompts, shares_letters)
                for _ in range(draw.randint(1, 5))
            ]
            answers = _answers(draw, engine, asked)
            wrong = list(_wrong(asked, answers, left, rounding_of(plain)))
            wrong += [each for tree in trees for each in _mixed(tree) if not shares_letters]
            report.wrong += [f"round {number}: {each}" for each in wrong]
            for got in answers:
                report.count(got)
            trees.clear()
            if draw.random() < 0.3:
                forgotten = draw.choice([None, *NAMES])
                engine.clear_cache(forgotten)
                for name in NAMES if forgotten is None else [forgotten]:
                    left[name].clear()
            report.wrong += [f"round {number}: {each}" for each in leaks(engine, caches)]


def _draw(
    draw: random.Random,
    plain: Engine,
    family: str,
    prompts: list[tuple[str, Inputs]],
    shares_letters: bool,
) -> Asked:
    tenant = draw.choice(list(ALPHABETS))
    writing = "" if shares_letters else tenant
    letters = list(ALPHABETS[writing])
    own = [prompt for name, prompt in prompts if name == writing]
    prompt = draw.choice(own) if own and draw.random() < 0.5 else draw_prompt(draw, family)
    prompt = in_letters(prompt, letters)
    prompts.append((writing, prompt))
    options: dict[str, Any] = {**draw_sampling(draw), "ignore_eos": True}
    options |= {"seed": draw.randrange(9), "max_new_tokens": draw.choice([1, 6, 16])}
    options["prefix_allowed_tokens_fn"] = partial(_allowed, letters, prompt["input_ids"].shape[1])
    plainly = Request(prompt, **options, speculate=False)
    expected = plain.generate(plainly)
    options["namespace"] = draw.choice(NAMES) if tenant == KEPT_OUT else tenant
    options |= {"reuse": tenant != KEPT_OUT, "speculate": True}
    if draw.random() < 0.3:
        text = speaking().decode([*COMMON, *(draw.choice(letters) for _ in range(9))])
        options["passages"] = [Passage(text, in_prompt=False)]
    if draw.random() < 0.3:
        options["prediction"] = expected.text[::-1] + expected.text
    is_cut = draw.random() < 0.15
    if is_cut:
        options["is_wanted"] = wanted(draw.randint(0, 6))
    media = split_media(from_inputs(prompt, plain.target.model.config))
    digests = {one.digest for items in media.items.values() for one in items} if media else ()
    return Asked(tenant, Request(prompt, **options), expected, is_cut, frozenset(digests))


def _allowed(letters: list[int], start: int, _: int, ids: torch.Tensor) -> list[int]:
    place = (len(ids) - start) % PERIOD
    return [COMMON[place]] if place < len(COMMON) else letters


def in_letters(prompt: Inputs, letters: Sequence[int]) -> Inputs:
    ids = prompt["input_ids"]
    own = torch.tensor(letters)[ids % len(letters)]
    is_text = (ids < FIRST_MEDIA_TOKEN) & ~torch.isin(ids, torch.tensor(letters))
    return {**prompt, "input_ids": torch.where(is_text, own, ids)}


def _answers(draw: random.Random, engine: Engine, asked: Sequence[Asked]) -> list[Result]:
    requests = [one.request for one in asked]
    how = draw.choice(["batch", "one by one", "threads"])
    if how == "batch":
        return engine.generate(requests)
    if how == "one by one":
        return [engine.generate([request])[0] for request in requests]
    split = draw.randint(0, len(asked))
    found = at_once([(engine, requests[:split]), (engine, requests[split:])])
    return [result for results in found for result in results]


def _wrong(
    asked: Sequence[Asked], answers: Sequence[Result], left: Mapping[str, list[Asked]], exact: float
) -> Iterator[str]:
    for place, (one, got) in enumerate(zip(asked, answers, strict=True)):
        told = f"{one.tenant!r}, {len(one.ids)} tokens"
        yield from (
            f"{told}: {each}"
            for each in differences(one.expected, got, may_close=one.is_cut, exact=exact)
        )
        # Those of a round may find each other.
        others = [*asked[:place], *asked[place + 1 :]]
        own = [*left[one.tenant], *(other for other in others if other.tenant == one.tenant)]
        own = [] if one.tenant == KEPT_OUT else own
        most = max((_shared(one.ids, other.text) for other in own), default=0)
        if got.stats.reused_tokens > most:
            yield f"{told}: {got.stats.reused_tokens} reused, its own tenant left {most}"
        seen = set[bytes]().union(*(other.media for other in own))
        if got.stats.reused_media and len(one.media) == 1 and not one.media & seen:
            yield f"{told}: {got.stats.reused_media} media reused, that nobody of its has shown"
    for one in asked:
        left[one.tenant].append(one)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _mixed(tree: TokenTree) -> Iterator[str]:
    """Of letters that are not the root's tenant's."""
    tenants = {name for token in tree.tokens for name, own in ALPHABETS.items() if token in own}
    if len(tenants) > 1:
        yield f"a tree with letters of {sorted(tenants)}: {tree.tokens} by {tree.drafters}"


@contextmanager
def _trees(engine: Engine) -> Iterator[list[TokenTree]]:
    """Those that the target scores within it."""
    target, seen = engine._decoded, list[TokenTree]()
    score = target.score

    def noting(trees: Sequence[TokenTree], *args: Any, **kwargs: Any) -> Any:
        seen.extend(tree for tree in trees if tree.num_nodes > 1)
        return score(trees, *args, **kwargs)

    target.score = noting  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        del target.score
