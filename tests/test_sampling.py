"""The sampler: transformers' own processors in its own order, then one token by seed and place."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from families import FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from inputs.text_families import build_tokenizer
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    SynthIDTextWatermarkLogitsProcessor,
)

from mmspec import sampling
from mmspec.build_sampler import build_sampler
from mmspec.errors import ConfigError, DecodeError
from mmspec.noise import gumbel
from mmspec.params import SamplingParams, merged_generation_config
from mmspec.penalties import GeneratedTokenPenalty
from mmspec.sampling import Choice, Sampler
from mmspec.tree import TokenTree
from mmspec.verify import Nodes, Weighed

VOCAB_SIZE = 112
EOS = 2
PROMPT = torch.tensor([1, 30, 31, 32, 30, 31])
NEW_TOKENS = 6


@cache
def _llama() -> PreTrainedModel:
    return FAMILIES["llama"].build(torch.float32)


class Favour(LogitsProcessor):
    """A user's own processor: one token is made likelier."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self.token] += 3.0
        return scores


class Refuse(LogitsProcessor):
    """A user's processor that writes into the scores and leaves only some tokens."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, self.allowed :] = -torch.inf
        return scores


def sampler_of(**options: Any) -> Sampler:
    """The sampler that a request with these options gets on the tiny llama."""
    params = SamplingParams(**{"seed": 7, **options})
    config = merged_generation_config(
        _llama(),
        params,
        tokenizer=build_tokenizer("qwen"),
        prompt_length=len(PROMPT),
        max_new_tokens=NEW_TOKENS,
    )
    return build_sampler(_llama(), config, params, PROMPT, seed=params.seed or 0)


def bare(seed: int = 7, *, greedy: bool = False, sample: int = 0, **options: Any) -> Sampler:
    """A sampler with no processors, or with those given."""
    processors = LogitsProcessorList(options.get("processors", ()))
    return Sampler(
        processors, PROMPT, is_greedy=greedy, seed=seed, sample=sample, max_new_tokens=NEW_TOKENS
    )


def logits_of(seed: int, vocab_size: int = VOCAB_SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3.0 * torch.randn(vocab_size, generator=generator)


def handed_to_sampling(
    monkeypatch: pytest.MonkeyPatch, custom: list[LogitsProcessor], options: dict[str, Any]
) -> LogitsProcessorList:
    """The processors that transformers' own generate hands to its sampling loop."""
    seen: list[LogitsProcessorList] = []

    def sample(
        self: PreTrainedModel, input_ids: Tensor, logits_processor: LogitsProcessorList, **_: object
    ) -> Tensor:
        seen.append(logits_processor)
        return input_ids

    with monkeypatch.context() as patch:
        patch.setattr(type(_llama()), "_sample", sample)
        _llama().generate(
            PROMPT.unsqueeze(0),
            max_new_tokens=NEW_TOKENS,
            logits_processor=LogitsProcessorList(custom),
            **options,
        )
    return seen[0]


# Each: our options, and transformers' own.
SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "greedy": ({"temperature": 0}, {"do_sample": False}),
    "plain sampling": ({"do_sample": True}, {"do_sample": True}),
    "temperature": ({"temperature": 0.7}, {"do_sample": True, "temperature": 0.7}),
    "top-p, no top-k": ({"top_p": 0.8, "top_k": 0}, {"do_sample": True, "top_p": 0.8, "top_k": 0}),
    "all warpers": (
        {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
        {"do_sample": True, "temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    ),
    "repetition, greedy": ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
    "logit bias": (
        {"logit_bias": {40: 2.0, 41: -5.0}, "temperature": 0.8},
        {"sequence_bias": [[[40], 2.0], [[41], -5.0]], "do_sample": True, "temperature": 0.8},
    ),
    "the user's own": (
        {"logits_processors": [Favour(50), Refuse(90)], "temperature": 0.5},
        {"do_sample": True, "temperature": 0.5},
    ),
    "from a generation_config": (
        {"generation_config": GenerationConfig(do_sample=True, top_k=9, typical_p=0.8)},
        {"do_sample": True, "top_k": 9, "typical_p": 0.8},
    ),
    "no-repeat and suppressed": (
        {"generation_config": GenerationConfig(no_repeat_ngram_size=2, suppress_tokens=[8, 9])},
        {"no_repeat_ngram_size": 2, "suppress_tokens": [8, 9]},
    ),
    "min new tokens": (
        {"min_new_tokens": 2, "logit_bias": {EOS: 50.0}},
        {"min_new_tokens": 2, "sequence_bias": [[[EOS], 50.0]]},
    ),
    "forced last": (
        {"generation_config": GenerationConfig(forced_eos_token_id=EOS)},
        {"forced_eos_token_id": EOS},
    ),
}


# LAW


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_greedy_is_the_argmax(dtype: torch.dtype) -> None:
    logits = logits_of(0).to(dtype)
    assert bare(greedy=True).choose(logits) == int(logits.argmax())


def test_the_token_is_the_argmax_of_logits_and_noise_at_its_place() -> None:
    sampler = bare(seed=11, sample=2)
    for position in range(4):
        logits = logits_of(position)
        expected = int((logits + gumbel(11, position, VOCAB_SIZE, sample=2)).argmax())
        assert sampler.choose(logits) == expected, f"position {position}"


def test_a_drafter_is_told_the_noise_and_the_warping_that_choose_the_token() -> None:
    sampler = sampler_of(temperature=0.7, top_k=9)
    for place in range(NEW_TOKENS):
        logits = logits_of(place).bfloat16()
        warped = sampler.guide.warp(logits.unsqueeze(0))
        assert torch.equal(warped[0], sampler.process(logits))
        noise = sampler.guide.noise_at([len(PROMPT) + place], VOCAB_SIZE)
        assert int((warped + noise).argmax()) == sampler.choose(logits)


def test_choosing_leaves_the_logits_as_they_were() -> None:
    logits = logits_of(0)
    before = logits.clone()
    bare(processors=[Refuse(20)]).choose(logits)
    bare(greedy=True, processors=[Refuse(20)]).choose(logits)
    assert torch.equal(logits, before), "other nodes of the tree may share this storage"


def test_processors_see_the_prompt_and_the_chosen_tokens_in_order() -> None:
    seen: list[list[int]] = []

    class Spy(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            assert input_ids.shape[0] == scores.shape[0] == 1
            seen.append(input_ids[0].tolist())
            return scores

    sampler = bare(processors=[Spy()])
    tokens = [sampler.choose(logits_of(position)) for position in range(3)]
    assert seen == [PROMPT.tolist() + tokens[:count] for count in range(3)]


@pytest.mark.parametrize("num_survivors", [1, 13, 14, 15, 60])
def test_sparse_and_dense_noise_choose_the_same_token(
    num_survivors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """112 / 8 = 14 survivors are the border; moved, it must not change a token."""
    for seed in range(40):
        logits = logits_of(seed)
        lost = logits.argsort(descending=True)[num_survivors:]
        logits[lost] = -torch.inf
        tokens = {}
        for share in (1, 8, VOCAB_SIZE + 1):  # always sparse, as it is, always dense
            monkeypatch.setattr(sampling, "_SPARSE_SHARE", share)
            tokens[share] = bare(seed=seed).choose(logits)
        assert len(set(tokens.values())) == 1, f"seed {seed}: {tokens}"
        assert tokens[8] not in lost


@given(st.integers(0, 2**64 - 1), st.integers(1, VOCAB_SIZE))
def test_a_forbidden_token_is_never_chosen(seed: int, num_allowed: int) -> None:
    logits = logits_of(seed % 1000)
    logits[num_allowed:] = -torch.inf
    assert bare(seed=seed).choose(logits) < num_allowed
    assert bare(greedy=True).choose(logits) < num_allowed


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("num_finite", [0, 3, 111])
def test_nan_is_an_error_and_no_token(greedy: bool, num_finite: int) -> None:
    logits = torch.full((VOCAB_SIZE,), -torch.inf)
    logits[:num_finite] = logits_of(0)[:num_finite]
    logits[-1] = torch.nan
    sampler = bare(greedy=greedy)
    with pytest.raises(DecodeError, match="generated token 0: got NaN"):
        sampler.choose(logits)
    assert sampler.num_chosen == 0


@pytest.mark.parametrize("greedy", [True, False])
def test_nothing_allowed_is_an_error_and_no_token(greedy: bool) -> None:
    sampler = bare(greedy=greedy, processors=[Refuse(0)])
    with pytest.raises(DecodeError, match="every token forbidden"):
        sampler.choose(logits_of(0))


@pytest.mark.parametrize("greedy", [True, False])
def test_an_overflow_is_an_error_and_no_token(greedy: bool) -> None:
    logits = logits_of(0)
    logits[5] = torch.inf
    with pytest.raises(DecodeError):
        bare(greedy=greedy).choose(logits)


def test_scores_ahead_are_those_after_the_tokens() -> None:
    options = {"temperature": 0.7, "top_k": 9, "repetition_penalty": 1.3}
    looking, walking = sampler_of(**options), sampler_of(**options)
    ahead = logits_of(2).topk(2).indices.tolist()
    for token in ahead:
        walking.record(token)
    expected = walking.process(logits_of(2))
    assert torch.equal(looking.process(logits_of(2), ahead), expected)
    assert looking.num_chosen == 0
    assert not torch.equal(looking.process(logits_of(2)), expected), "no penalty seen"


def by_probability(nodes: Nodes) -> Weighed:
    return Weighed(nodes.p.gather(1, nodes.tokens), nodes.p.log())


@pytest.mark.parametrize("on_device", [False, True])
def test_what_is_weighed_is_what_is_chosen_from(on_device: bool) -> None:
    """argmax(log p + g) is the token that `choose` takes, place by place."""
    options = {"temperature": 0.7, "top_k": 9, "repetition_penalty": 1.3}
    chooser, sampler = sampler_of(**options), sampler_of(**options)
    sampler._on_device = on_device
    tree = TokenTree((1, 5, 6, 5), (-1, 0, 0, 1), (1.0,) * 4, ("",) * 4)
    for position in range(NEW_TOKENS):
        logits = torch.stack([logits_of(position)] * 4)
        p = torch.softmax(sampler.process(logits[0]).double(), -1)
        odds, ahead = sampler.weigh(by_probability, tree, logits, [0, 1], at=0)
        assert odds.chances == p[[5, 6]].tolist() and len(ahead.chances) == 1
        assert odds.draw() == chooser.choose(logits[0])
        sampler.record(chooser._ids[0, len(PROMPT) + position].item())


@pytest.mark.parametrize("on_device", [False, True])
def test_what_is_weighed_ahead_is_what_is_weighed_there(on_device: bool) -> None:
    sampler = sampler_of(temperature=0.7, top_k=9, repetition_penalty=1.3)
    sampler._on_device = on_device
    tree = TokenTree((1, 5, 6, 7), (-1, 0, 1, 1), (1.0,) * 4, ("",) * 4)
    logits = torch.stack([logits_of(node) for node in range(4)])
    nodes = (0, 1, 2)
    for node, odds in zip(
        nodes, sampler.weigh(by_probability, tree, logits, nodes, at=0), strict=True
    ):
        if node:
            sampler.record(tree.tokens[node])
        (there,) = sampler.weigh(by_probability, tree, logits, [node], at=node)
        assert odds.chances == there.chances and len(odds.chances) == len(tree.children(node))
        assert odds.draw() == there.draw()


def test_what_was_foreseen_is_told_along_the_way_to_it() -> None:
    sampler, tree = bare(), TokenTree.chain(1, [5, 6], [1.0, 1.0], "")
    logits = torch.stack([logits_of(node) for node in range(3)])
    foreseen = {(): Choice(5, 1.0, None, (0.25,)), (5,): Choice(6, 1.0, None, (0.5,))}
    sampler.foresee(foreseen)

    def chances(nodes: Sequence[int], at: int) -> list[Sequence[float]]:
        return [odds.chances for odds in sampler.weigh(by_probability, tree, logits, nodes, at=at)]

    assert chances([0, 1], 0) == [(0.25,), (0.5,)]
    now = chances([0, 1, 2], 0)
    assert now[0] == pytest.approx([float(logits[0].softmax(0)[5])]), "one of them was not foreseen"
    sampler.record(5)
    assert chances([1], 1) == [(0.5,)]


def test_what_a_rule_would_draw_is_not_what_the_target_chooses() -> None:
    """Where a rule's walk asks for a choice at a node that was weighed."""
    logits, weighed = logits_of(0), bare()
    chosen = bare().choose(logits)
    weighed.foresee({(): Choice((chosen + 1) % VOCAB_SIZE, 1.0, chances=(0.5,))})
    assert weighed.choose(logits) == chosen


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nothing_is_weighed_where_nothing_can_be_chosen(value: float) -> None:
    logits = logits_of(0)
    logits[3] = value
    with pytest.raises(DecodeError, match="generated token 0"):
        bare().weigh(by_probability, TokenTree.root(0), logits.unsqueeze(0), [0], at=0)


def test_where_nothing_was_foreseen_to_be_chosen_nothing_is() -> None:
    sampler, logits = bare(), logits_of(0)
    sampler.foresee({(): Choice(3, torch.nan)})
    with pytest.raises(DecodeError, match="NaN"):
        sampler.choose(logits)
    with pytest.raises(DecodeError, match="NaN"):
        sampler.weigh(by_probability, TokenTree.root(0), logits.unsqueeze(0), [0], at=0)


def test_each_sample_and_place_has_uniforms_of_its_own() -> None:
    first, second = (bare(sample=sample) for sample in (0, 1))
    drawn = [*first.uniforms(4), *second.uniforms(4)]
    first.record(3)
    assert len({*drawn, *first.uniforms(4)}) == 12


@pytest.mark.parametrize(
    ("said", "got"), [(None, "gave None"), (torch.zeros(1, 3), r"gave scores of shape \(1, 3\)")]
)
def test_a_processor_that_gives_no_scores_is_named(said: Tensor | None, got: str) -> None:
    class Odd(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor | None:
            return said

    with pytest.raises(DecodeError, match=rf"\(Odd\) {got}; .* \(1, {VOCAB_SIZE}\)"):
        bare(processors=[Odd()]).choose(logits_of(0))


def test_a_watermark_that_remembers_is_not_asked_ahead() -> None:
    mark = SynthIDTextWatermarkLogitsProcessor(3, [1, 2, 3], 64, 0, 16, torch.device("cpu"))
    with pytest.raises(ConfigError, match="SynthIDTextWatermarkLogitsProcessor may keep state"):
        bare(processors=[mark]).process(logits_of(0), ahead=[3])


def test_penalties_by_hand() -> None:
    penalty = GeneratedTokenPenalty(presence=0.5, frequency=0.25, prompt_length=2)
    prompt, generated = [3, 4], [4, 5, 5, 5]
    scores = torch.zeros(1, 7)
    processed = penalty(torch.tensor([prompt + generated]), scores)
    #                    0    1    2    3    4             5                 6
    assert processed.tolist() == [[0.0, 0.0, 0.0, 0.0, -0.5 - 0.25, -0.5 - 3 * 0.25, 0.0]]
    assert torch.equal(scores, torch.zeros(1, 7)), "new scores, the old ones stay"


def test_penalties_count_each_row_by_itself() -> None:
    penalty = GeneratedTokenPenalty(presence=1.0, frequency=0.0, prompt_length=1)
    processed = penalty(torch.tensor([[0, 1], [0, 2]]), torch.zeros(2, 3))
    assert processed.tolist() == [[0.0, -1.0, 0.0], [0.0, 0.0, -1.0]]


def test_penalties_come_before_the_users_processors_and_the_warpers() -> None:
    theirs = Favour(50)
    sampler = sampler_of(presence_penalty=0.5, temperature=0.7, logits_processors=[theirs])
    names = [type(one).__name__ for one in sampler.processors]
    assert names == [
        "GeneratedTokenPenalty",
        "Favour",
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
    ]
    assert sampler.processors[1] is theirs


def test_no_penalty_no_processor() -> None:
    assert sampler_of(temperature=0).processors == []


# ORACLE


@pytest.mark.parametrize("case", SAME)
def test_processed_logits_are_those_of_transformers_generate(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = SAME[case]
    custom = list(ours.get("logits_processors", ()))
    expected = handed_to_sampling(monkeypatch, custom, theirs)
    sampler = sampler_of(**ours)
    assert sampler.is_greedy is not theirs.get("do_sample", False)
    text = PROMPT
    for position in range(NEW_TOKENS):
        logits = logits_of(position)
        theirs_scores = expected(text.unsqueeze(0), logits.clone().unsqueeze(0))
        ours_scores = sampler.processors(text.unsqueeze(0), logits.clone().unsqueeze(0))
        assert torch.equal(ours_scores, theirs_scores), f"generated token {position}"
        text = torch.cat([text, logits_of(position)[:60].argmax().unsqueeze(0)])
