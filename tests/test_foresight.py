"""Foresight: choices found for all nodes at once are those of the walk, at one wait a step."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import matrix
import pytest
import ragged
import torch
from adversary import Adversary
from lent import Lent, counted
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process

from mmspec import prefixes
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.drafting import Drafting
from mmspec.engine import Engine
from mmspec.foresight import foresee
from mmspec.nucleus import TopP
from mmspec.penalties import GeneratedTokenPenalty
from mmspec.prefixes import Prefixes, apply, can_apply
from mmspec.requests import Request, Result
from mmspec.row import Row
from mmspec.sampling import Choice, Sampler
from mmspec.state import Prompt, Scores
from mmspec.stream import TextStream, build_detokenizer
from mmspec.tree import TokenTree
from mmspec.verify import VERIFIERS

VOCAB_SIZE = 112
#        0        Not in the order of depths: node 3 lies below node 4.
#      / | \
#     1  2  4
#     |     |\
#     3     5 6
#     |
#     7
TREE = TokenTree(
    tokens=(30, 31, 32, 30, 33, 31, 32, 30),
    parents=(-1, 0, 0, 1, 0, 4, 4, 3),
    confidence=(1.0,) * 8,
    drafters=("",) * 8,
)
IDS = torch.tensor([[1, 30, 31, 32, 30, 31, 30, 31, 30]])

PROCESSORS: Mapping[str, Any] = {
    "temperature": lambda: logits_process.TemperatureLogitsWarper(0.7),
    "top_k": lambda: logits_process.TopKLogitsWarper(5),
    "top_p": lambda: logits_process.TopPLogitsWarper(0.8),
    "min_p": lambda: logits_process.MinPLogitsWarper(0.1),
    "typical": lambda: logits_process.TypicalLogitsWarper(0.9),
    "epsilon": lambda: logits_process.EpsilonLogitsWarper(0.02),
    "eta": lambda: logits_process.EtaLogitsWarper(0.02),
    "inf_nan": logits_process.InfNanRemoveLogitsProcessor,
    "normalised": logits_process.LogitNormalization,
    "suppressed": lambda: logits_process.SuppressTokensLogitsProcessor([3, 4]),
    "repetition": lambda: logits_process.RepetitionPenaltyLogitsProcessor(1.3),
    "counts": lambda: GeneratedTokenPenalty(0.5, 0.25, 5),
    "min_length": lambda: logits_process.MinLengthLogitsProcessor(11, 30),
    "min_new": lambda: logits_process.MinNewTokensLengthLogitsProcessor(5, 6, 30),
    "forced_bos": lambda: logits_process.ForcedBOSTokenLogitsProcessor(1),
    "forced_eos": lambda: logits_process.ForcedEOSTokenLogitsProcessor(12, 2),
    "decay": lambda: logits_process.ExponentialDecayLengthPenalty((4, 1.3), 30, 5),
    "begin": lambda: logits_process.SuppressTokensAtBeginLogitsProcessor([30], 10),
    "bias": lambda: logits_process.SequenceBiasLogitsProcessor({(31, 30): 4.0, (32,): -2.0}),
    "bad_words": lambda: logits_process.NoBadWordsLogitsProcessor([[30, 31], [33]], 2),
    "ngrams": lambda: logits_process.NoRepeatNGramLogitsProcessor(2),
    "prompt_ngrams": lambda: logits_process.EncoderNoRepeatNGramLogitsProcessor(2, IDS[:, :6]),
    "prompt_repetition": lambda: logits_process.EncoderRepetitionPenaltyLogitsProcessor(
        1.4, IDS[:, :6]
    ),
}


def logits_of(nodes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(nodes)
    return 3.0 * torch.randn(nodes, VOCAB_SIZE, generator=generator).to(dtype)


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_says_of_all_nodes_what_it_says_of_each(name: str) -> None:
    processor, scores = PROCESSORS[name](), logits_of(8)
    scores = scores.bfloat16().float()  # with ties
    places = Prefixes(TREE, IDS)
    assert places.depths == [0, 1, 1, 1, 2, 2, 2, 3]
    together = apply(processor, places, scores[places.order].clone())
    for place, node in enumerate(places.order):
        path = [TREE.tokens[n] for n in TREE.path_to(node)[1:]]
        ids = torch.cat([IDS, torch.tensor([path], dtype=torch.long)], dim=1)
        alone = PROCESSORS[name]()(ids, scores[node : node + 1].clone())
        assert torch.equal(alone[0], together[place]), f"node {node}"


def test_every_known_processor_is_tested() -> None:
    tested = {type(make()) for make in PROCESSORS.values()}
    assert {*tested, TopP} == set(prefixes._FORMS)  # TopP: in test_nucleus.py


def test_what_may_keep_state_is_left_to_the_walk() -> None:
    class Own(logits_process.TopKLogitsWarper):
        """A user's subclass may do anything."""

    constrained = logits_process.PrefixConstrainedLogitsProcessor(lambda row, ids: [1], 1)
    ignoring = logits_process.RepetitionPenaltyLogitsProcessor(1.3, prompt_ignore_length=4)
    assert not any(map(can_apply, (Own(3), constrained, ignoring)))


OPTIONS: Mapping[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "t1": {"temperature": 1.0, "top_k": 0},
    "penalties": {
        "temperature": 0.0,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
    },
    "warped": {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    "all": {
        "temperature": 1.1,
        "top_p": 0.95,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.2,
        "min_new_tokens": 9,
        "eos_token_id": list(range(3, 40)),
        "logit_bias": {7: 2.0, 50: -1.0},
        "bad_words": ["ab"],
    },
    "stops": {"temperature": 1.3, "stop": ["e", "Q"], "max_time": 60.0},
    "recorded": {
        "temperature": 0.9,
        "top_k": 30,
        "logprobs": 3,
        "logprobs_of": "processed",
        "prompt_logprobs": 2,
        "output_scores": True,
        "output_logits": True,
    },
    "greedy_recorded": {"temperature": 0.0, "logprobs": 2},
}


def requests_of(options: Mapping[str, Any]) -> list[Request]:
    return ragged.requests_of(
        sampling=options, lengths=(30, 17, 23), new=(18, 15, 12), first_seed=5
    )


def engine_of(
    choosing: str, truths: list[Result], options: Mapping[str, Any], **more: Any
) -> Engine:
    config = Config(
        decode=DecodeConfig(
            max_nodes=12, max_rows=3, controller="fixed", choosing=choosing, **more
        ),
        cache=CacheConfig(prefix_bytes=0),
    )
    known = {
        tuple(request.prompt["input_ids"][0].tolist()): result.tokens  # type: ignore[index,call-overload]
        for request, result in zip(requests_of(options), truths, strict=False)
    }
    drafters = [Adversary(known, VOCAB_SIZE)] if known else []
    return matrix.engine_of("llama", config=config, drafters=drafters)


def said(result: Result) -> tuple[Any, ...]:
    tensors = [t if t is None else t.tolist() for t in (result.scores, result.logits)]
    kept = (result.logprobs, result.prompt_logprobs)
    return result.tokens, result.text, result.finish_reason, kept, tensors


@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_chosen_and_recorded_is_the_same(name: str) -> None:
    options = OPTIONS[name]
    walked = engine_of("host", [], options).generate(requests_of(options))
    assert any(len(result.tokens) > 4 for result in walked)
    for truths in ([], walked):
        expected, results = (
            engine_of(choosing, truths, options).generate(requests_of(options))
            for choosing in ("host", "device")
        )
        assert [*map(said, results)] == [*map(said, expected)]
        assert [result.tokens for result in results] == [result.tokens for result in walked]
        accepted = sum(result.stats.tokens_per_step for result in results) / 3 - 1
        assert (accepted > 0.3) == bool(truths)


def test_rows_of_a_step_are_chosen_from_each_in_its_own_way() -> None:
    """What is alike of them is computed together; greedy and sampled, warm and cold are not."""
    ways: list[dict[str, Any]] = [
        {"temperature": 0.0, "frequency_penalty": 0.2},
        {"temperature": 0.4, "logit_bias": {7: 9.0}, "min_p": 0.01},
        {"temperature": 1.6, "logit_bias": {8: 9.0}, "min_p": 0.01},
        {"temperature": 1.0, "top_k": 0},
        {"temperature": 0.0},
        {"temperature": 1.0, "top_k": 4},
    ]
    requests = [requests_of(way)[row % 3] for row, way in enumerate(ways)]
    requests = [requests[row] for row in (0, 4, 3, 1, 2, 5)]
    walked, foreseen = (
        engine_of(choosing, [], {}).generate(requests) for choosing in ("host", "device")
    )
    alone = [engine_of("host", [], {}).generate(request) for request in requests]
    assert [*map(said, foreseen)] == [*map(said, walked)] == [*map(said, alone)]


def test_choices_stand_in_the_order_of_the_rows_however_these_are_grouped() -> None:
    rows, logits = [row_of(is_greedy) for is_greedy in (True, False, True)], logits_of(3)
    scores = [Scores(own, {}) for own in logits.split(1)]
    roots = [TokenTree.root(30)] * 3
    chosen = foresee(VERIFIERS["coupled"], zip(rows, roots, scores, strict=True)).choices(rows)
    assert chosen is not None
    walked = [row.choose(own) for row, own in zip(rows, logits, strict=True)]
    assert chosen.squeeze(1).tolist() == walked and len(set(walked)) == 3


@pytest.mark.parametrize("value", [None, torch.nan])
@pytest.mark.parametrize("is_turned", [False, True])
def test_a_rule_weighs_a_row_as_alone_beside_one_without_drafts(
    is_turned: bool, value: float | None
) -> None:
    q = logits_of(3)[:2].softmax(-1)
    trees = [TokenTree.root(30), TokenTree.drafted((30, 31), (-1, 0), (1.0, 0.5), "", q=q)]
    logits = [logits_of(1), logits_of(2)]
    if value is not None:
        logits[1][0, 5] = value
    if is_turned:
        trees.reverse()
        logits.reverse()

    def told(*places: int) -> list[dict[tuple[int, ...], Choice]]:
        rows = [row_of(is_greedy=False) for _ in places]
        scores = [Scores(logits[place]) for place in places]
        own = [trees[place] for place in places]
        foresee(VERIFIERS["speculative"], zip(rows, own, scores, strict=True)).tell()
        return [dict(row.sampler._foreseen) for row in rows]

    together = told(0, 1)
    assert repr(together) == repr([*told(0), *told(1)])  # a NaN is none of its equals
    drafted, plain = together[not is_turned], together[is_turned]
    assert len(drafted[()].chances) == 1 and not plain[()].chances
    assert math.isnan(drafted[()].value) == (value is not None)


def row_of(is_greedy: bool) -> Row:
    """One that chooses on its device, by its seed alone."""
    processors, ids = LogitsProcessorList(), IDS[0]
    sampler = Sampler(
        processors, ids, is_greedy=is_greedy, seed=1, max_new_tokens=4, on_device=True
    )
    text = TextStream(build_detokenizer(None, skip_special_tokens=True))
    return Row(
        Prompt(ids), sampler, text, Drafting(()), eos_token_ids=frozenset(), max_new_tokens=4
    )


def test_samples_of_one_prompt_differ_as_along_the_walk() -> None:
    request = requests_of({"temperature": 1.2, "n": 3, "logprobs": 1})[0]
    walked, foreseen = (
        engine_of(choosing, [], {}).generate(request) for choosing in ("host", "device")
    )
    assert [*map(said, walked.samples)] == [*map(said, foreseen.samples)]
    assert len({sample.tokens for sample in walked.samples}) == 3


@pytest.mark.parametrize(("name", "is_plain"), [*product(OPTIONS, (False, True))])
def test_a_step_waits_once_for_the_device(name: str, is_plain: bool) -> None:
    """One read of the host for each row's first token, then one a step for all three rows."""
    options = OPTIONS[name]
    truths = engine_of("host", [], options).generate(requests_of(options))
    engine = engine_of("device", [] if is_plain else truths, options)
    requests = requests_of(options)
    rows = [engine._row(request, row) for row, request in enumerate(requests)]
    with counted(engine.target) as steps:
        for _ in engine._decode(rows):
            pass
    assert [row.chosen for row in rows] == [list(truth.tokens) for truth in truths]
    assert len(steps) > 3
    assert steps == [3, *[1] * (len(steps) - 1)], f"{steps}: {Lent.reads}"


def test_the_walk_on_the_host_reads_more_often() -> None:
    """Without this, the count above could miss every read."""
    options = OPTIONS["warped"]
    truths = engine_of("host", [], options).generate(requests_of(options))
    engine = engine_of("host", truths, options)
    with counted(engine.target) as steps:
        results = engine.generate(requests_of(options))
    assert [result.tokens for result in results] == [result.tokens for result in truths]
    assert min(steps[1:]) >= 3


def test_the_walk_waits_once_a_token_for_a_processor_of_the_users() -> None:
    class Counting(LogitsProcessor):
        """Keeps state: forbids another token each time it is called."""

        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            self.calls += 1
            return scores.index_fill(1, torch.tensor([3 + self.calls % 90]), -torch.inf)

    def options() -> dict[str, Any]:
        return {"temperature": 1.0, "logits_processors": [Counting()]}

    walked = [engine_of("host", [], {}).generate(r) for r in map(_with(options), requests_of({}))]
    engine = engine_of("device", walked, {})
    rows = [engine._row(r, i) for i, r in enumerate(map(_with(options), requests_of({})))]
    with counted(engine.target) as steps:
        for _ in engine._decode(rows):
            pass
    assert [row.chosen for row in rows] == [list(result.tokens) for result in walked]
    assert sum(steps) == sum(len(result.tokens) for result in walked)


def _with(options: Callable[[], dict[str, Any]]) -> Callable[[Request], Request]:
    return lambda request: replace(request, **options())
