"""Waits for the device: one a step for all rows to verify, whatever the rule; one a level of a
draft, and one for a whole chain that no token can end."""

from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from typing import Any

import matrix
import pretend
import pytest
import ragged
import torch
from eagle_heads import fitted
from families import FAMILIES
from glide_heads import drawn as drawn_head
from glide_heads import target_of
from lent import Lent, noted
from matrix import letters, model_of
from medusa_heads import unfitted
from verify.node_by_node import ORACLES

import mmspec
from mmspec import decoder
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.drafters.cascade import Cascade
from mmspec.drafters.compressed_kv import CompressedKV
from mmspec.drafters.dflash import DFlash
from mmspec.drafters.draft_model import DraftModel
from mmspec.drafters.eagle import Eagle
from mmspec.drafters.eagle.scoring import EagleScorer
from mmspec.drafters.glide import Glide
from mmspec.drafters.glide.scoring import GlideScorer
from mmspec.drafters.layer_skip import LayerSkip
from mmspec.drafters.lookahead import Lookahead
from mmspec.drafters.medusa import Medusa
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.drafters.token_recycling import TokenRecycling
from mmspec.engine import Engine
from mmspec.requests import Request, Result
from mmspec.verify import VERIFIERS, Rule

SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "t1": {"temperature": 1.0, "top_k": 0},
    "warped": {"temperature": 0.9, "top_k": 12, "top_p": 0.95, "repetition_penalty": 1.2},
    "recorded": {"temperature": 0.8, "top_k": 0, "logprobs": 2, "logprobs_of": "processed"},
}
VIEW: dict[str, Any] = {"budget": 12, "recent": 5, "max_share": 1.0, "min_confidence": 0.0}


def draft(**options: Any) -> DraftModel:
    return DraftModel(model_of("llama", "float64"), letters(), **options)


def drawn(*profile: int) -> dict[str, Any]:
    return {"draw": "sample", "profile": profile, "min_confidence": 0.0}


def eagle(version: int, **options: Any) -> Eagle:
    return Eagle(fitted(matrix.model_of("llama", "float64"), version), **options)


def dflash(**options: Any) -> DFlash:
    return DFlash(matrix.dflash("llama", "float64"), min_confidence=0.0, **options)


def medusa(**options: Any) -> Medusa:
    return Medusa(unfitted(model_of("llama", "float64"), spread=0.02), **options)


def glide(**options: Any) -> Glide:
    head = drawn_head(target_of("llama"), num_layers=2)
    return Glide(head, **{"min_confidence": 0.0, "max_depth": 3} | options)


def lookup() -> PromptLookup:
    return PromptLookup(min_match=1, min_confidence=0.0, max_depth=6)


def cascade(lower: Any, **middle: Any) -> Cascade:
    view = CompressedKV(policy="topk_chunks", **VIEW, **middle)
    return Cascade(lower, view, max_depth=5, lower_nodes=6)


SAMPLED, ALL = ("t1", "warped"), ("greedy", "t1", "warped")
# name -> (rule, drafter, samplings in which its trees are set chains)
CELLS: dict[str, tuple[str, Any, Sequence[str]]] = {
    "speculative-draft": ("speculative", lambda: draft(**drawn(1, 1, 1)), SAMPLED),
    "speculative-view": ("speculative", lambda: CompressedKV(**VIEW | drawn(1, 1)), ALL),
    "speculative-cascade": (
        "speculative", lambda: cascade(lookup(), draw="sample"), (),
    ),
    "block-draft": ("block", lambda: draft(**drawn(1, 1, 1)), SAMPLED),
    "block-view": ("block", lambda: CompressedKV(**VIEW | drawn(1, 1, 1)), ALL),
    "recursive-draft": ("recursive", lambda: draft(**drawn(2, 2)), ()),
    "recursive-view": ("recursive", lambda: CompressedKV(**VIEW | drawn(3, 1)), ("greedy",)),
    "typical-draft": ("typical_lossy", lambda: draft(top_k=2, min_confidence=0.1), ()),
    "coupled-draft": ("coupled", lambda: draft(top_k=3), ()),
    "coupled-set-chain": ("coupled", lambda: draft(top_k=1, min_confidence=0.0, max_depth=4), ALL),
    "coupled-view": ("coupled", lambda: CompressedKV(**VIEW, top_k=2, width=2, max_depth=3), ()),
    "coupled-layer-skip": ("coupled", lambda: LayerSkip(max_depth=3, top_k=2), ()),
    "coupled-medusa": ("coupled", lambda: medusa(tree=[[n] for n in range(10)]), ()),
    "recursive-medusa": ("recursive", lambda: medusa(draw="sample", profile=(4, 1)), ()),
    "coupled-dflash": ("coupled", lambda: dflash(top_k=8), ()),
    "block-dflash": ("block", lambda: dflash(draw="sample"), ()),
    "coupled-lookahead": ("coupled", lambda: Lookahead(window=3, ngram=3), ()),
    "coupled-recycling": ("coupled", lambda: TokenRecycling(min_confidence=0.0), ()),
    "speculative-eagle": ("speculative", lambda: eagle(3, **drawn(1, 1, 1)), SAMPLED),
    "recursive-eagle": ("recursive", lambda: eagle(1, **drawn(2, 2)), ()),
    "block-eagle": ("block", lambda: eagle(1, **drawn(1, 1, 1)), SAMPLED),
    "coupled-eagle": ("coupled", lambda: eagle(3, top_k=3, max_depth=3), ()),
    "coupled-glide": ("coupled", lambda: glide(cape_thresholds=(), cape_widths=(6,)), ()),
    "speculative-glide": ("speculative", lambda: glide(**drawn(1, 1, 1)), SAMPLED),
    "coupled-cascade": ("coupled", lambda: cascade(lookup()), ()),
    "coupled-cascade-draft": ("coupled", lambda: cascade(draft(min_confidence=0.0)), ()),
}  # fmt: skip
READING = ("coupled-recycling",)  # a proposal without a forward reads what the target said before


def engine_of(cell: str, choosing: str, *, rule: Rule | None = None) -> Engine:
    verifier, make, _ = CELLS[cell]
    config = Config(
        decode=DecodeConfig(
            max_nodes=10,
            max_rows=3,
            controller="fixed",
            verifier=verifier,
            choosing=choosing,
            cuda_graphs="never",
        ),
        cache=CacheConfig(prefix_bytes=0),
    )
    engine = mmspec.load(model_of("llama", "float64"), letters(), config=config, drafter=[make()])
    if rule is not None:
        engine._rule = rule
    return engine


def requests_of(sampling: str) -> list[Request]:
    return ragged.requests_of(
        sampling=SAMPLINGS[sampling], lengths=(30, 17, 23), new=(13, 11, 9), first_seed=5
    )


def models(drafter: Any) -> list[Any]:
    """Those that run while it drafts, beside the target itself."""
    if drafter.name == "eagle":
        return [EagleScorer]
    if drafter.name == "glide":
        return [GlideScorer]
    if hasattr(drafter, "middle"):
        return [*models(drafter.middle), *models(drafter.lower)]
    return [drafter.model] if hasattr(drafter, "model") else []


def said(results: Sequence[Result]) -> list[Any]:
    return [(r.tokens, r.text, r.finish_reason, r.logprobs, r.stats.by_drafter) for r in results]


GREEDY = ("speculative-view", "recursive-view", "coupled-draft", "coupled-cascade")


@pytest.mark.parametrize(
    ("cell", "sampling"),
    [*product(CELLS, ["t1"]), *product(GREEDY, ["greedy"]), ("recursive-draft", "warped")],
)
def test_a_step_waits_once_to_verify_and_once_a_level(cell: str, sampling: str) -> None:
    engine = engine_of(cell, "device")
    (drafter,) = engine.drafters
    targets = {id(target): target for target in (engine.target, *models(drafter))}
    with noted(*targets.values()) as forwards:
        results = engine.generate(requests_of(sampling))
    first, *calls = [reads for _, reads in forwards]
    assert len(calls) > 6 and first == 3, "one for the first token of each row"
    assert max(calls) == 1 + (cell in READING), f"{calls}: {Lent.reads}"
    assert sum(result.stats.accepted_lengths.get(0, 0) for result in results) < sum(
        result.stats.steps for result in results
    ), "nothing was accepted: the walks prove little"
    assert (calls.count(0) > len(calls) // 4) == (sampling in CELLS[cell][2]), f"{calls}"
    plain = engine_of(cell, "host").generate(requests_of(sampling))
    assert said(results) == said(plain)


@pytest.mark.parametrize(
    ("cell", "sampling", "choosing"),
    [
        ("speculative-draft", "warped", "host"),
        ("recursive-draft", "t1", "host"),
        ("block-draft", "t1", "host"),
        ("recursive-view", "warped", "device"),
        ("block-draft", "warped", "device"),
    ],
)
def test_what_is_weighed_is_what_the_papers_write_down(
    cell: str, sampling: str, choosing: str
) -> None:
    """Token by token, against the same rules in plain numbers."""
    oracle = engine_of(cell, "host", rule=ORACLES[CELLS[cell][0]])
    expected = said(oracle.generate(requests_of(sampling)))
    assert said(engine_of(cell, choosing).generate(requests_of(sampling))) == expected


@pytest.mark.slow  # a minute, as each operation and each kernel goes by Python
@pytest.mark.parametrize(
    ("cell", "waits"),
    [
        ("block-draft", 2),  # a whole chain, one step
        ("recursive-view", 3),  # two levels, one step
        ("speculative-view", 2),
        ("coupled-set-chain", 2),
        ("coupled-view", 4),
        ("coupled-layer-skip", 4),
        ("coupled-medusa", 2),
        ("recursive-medusa", 2),  # all levels at once
        ("coupled-dflash", 2),
        ("block-dflash", 2),
        ("coupled-lookahead", 1),  # what the target says of the window is known with its choices
        ("coupled-recycling", 2),  # all rows' likeliest tokens at once
        ("block-eagle", 2),
        ("recursive-eagle", 3),
        ("coupled-eagle", 4),
        ("coupled-glide", 4),
        ("speculative-glide", 2),
        ("coupled-cascade", 5),  # four forwards over the view at most
    ],
)
def test_whole_steps_on_a_pretended_device(
    cell: str, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a step does is counted: forwards, commits, views that are chosen anew. These are
    timed, which waits for the device once a view."""
    expected = said(engine_of(cell, "host").generate(requests_of("t1")))
    with pretend.device() as device:
        model = FAMILIES["llama"].build(torch.float64).to("cuda")
        monkeypatch.setitem(globals(), "model_of", lambda *_: model)
        engine = engine_of(cell, "auto")
        begun, propose = list[int](), decoder.propose

        def noted_propose(*args: Any, **options: Any) -> Any:
            begun.append(len(device.waits))
            return propose(*args, **options)

        monkeypatch.setattr(decoder, "propose", noted_propose)
        results = engine.generate(requests_of("t1"))
    assert said(results) == expected
    # The first step makes what stays: draft models read their prompts, views are gathered.
    steps = [device.waits[a:b] for a, b in pairwise([*begun[1:], len(device.waits)])]
    clocks = [sum("synchronize" in wait.why for wait in step) for step in steps]
    reads = [len(step) - clock for step, clock in zip(steps, clocks, strict=True)]
    assert reads and max(reads) <= waits, f"{reads}: {[*map(str, device.waits[begun[1] :])]}"
    assert max(clocks) <= len(results) * any(kind in cell for kind in ("view", "cascade"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_5", "lfm2", "falcon_h1"])  # without experts, which wait
def test_a_step_of_a_model_with_running_states_waits_no_more(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States are gathered, kept and committed by places that the host knows."""
    model = FAMILIES[family].build(torch.float64)
    monkeypatch.setitem(globals(), "model_of", lambda *_: model)
    monkeypatch.setitem(CELLS, "coupled-lookup", ("coupled", lookup, ()))
    expected = said(engine_of("coupled-lookup", "host").generate(requests_of("t1")))
    with pretend.device() as device:
        model = FAMILIES[family].build(torch.float64).to("cuda")
        engine = engine_of("coupled-lookup", "auto")
        begun, propose = list[int](), decoder.propose

        def noted_propose(*args: Any, **options: Any) -> Any:
            begun.append(len(device.waits))
            return propose(*args, **options)

        monkeypatch.setattr(decoder, "propose", noted_propose)
        results = engine.generate(requests_of("t1"))
    assert said(results) == expected
    steps = [device.waits[a:b] for a, b in pairwise([*begun[1:], len(device.waits)])]
    assert steps and max(map(len, steps)) <= 1, [*map(str, device.waits[begun[1] :])]


def test_node_by_node_reads_more_often() -> None:
    """Without this, the counts above could miss every read."""
    engine = engine_of("block-draft", "device", rule=ORACLES["block"])
    with noted(engine.target) as forwards:
        engine.generate(requests_of("t1"))
    assert max(reads for target, reads in forwards if target is not None) > 10


def test_a_rule_that_is_not_known_ahead_waits_along_the_walk() -> None:
    """A user's own: one wait a walked node, and the same text."""
    known = VERIFIERS["speculative"]
    engine = engine_of("speculative-draft", "device", rule=Rule(known.walk, needs_q=True))
    with noted(engine.target) as forwards:
        results = engine.generate(requests_of("t1"))
    tokens = sum(len(result.tokens) for result in results)
    assert sum(reads for _, reads in forwards) == tokens
    assert said(results) == said(engine_of("speculative-draft", "host").generate(requests_of("t1")))


def test_what_is_recorded_of_a_typical_path_is_its_own() -> None:
    """A node has siblings at its depth: their scores are not its own."""
    options: Mapping[str, Any] = SAMPLINGS["recorded"]
    assert options["logprobs"]
    for choosing in ("host", "device"):
        results = engine_of("typical-draft", choosing).generate(requests_of("recorded"))
        for request, result in zip(requests_of("recorded"), results, strict=True):
            ids = request.prompt["input_ids"]  # type: ignore[index,call-overload]
            text = torch.cat([ids, torch.tensor([result.tokens])], dim=1)
            with torch.no_grad():
                logits = model_of("llama", "float64")(text).logits[0, ids.shape[1] - 1 : -1]
            own = torch.log_softmax(logits.float() / options["temperature"], -1)
            assert result.logprobs is not None
            for place, (token, kept) in enumerate(zip(result.tokens, result.logprobs, strict=True)):
                assert kept.chosen.token == token
                assert kept.chosen.logprob == pytest.approx(float(own[place, token]), abs=1e-4)
