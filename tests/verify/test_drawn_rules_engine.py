"""The rules that divide by q, through the engine: its texts, its refusals, its randomness."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from adversary import Adversary
from families import FAMILIES, prompt_inputs
from outcomes import distribution, texts_of
from sampling_drafter import SamplingDrafter, SamplingSession, draw_children
from torch import Tensor
from transformers import LogitsProcessor

import mmspec
from mmspec.config import Config, DecodeConfig
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.engine import Engine
from mmspec.errors import ConfigError
from mmspec.sampling import Choosing
from mmspec.state import Verdict
from mmspec.tree import TokenTree
from mmspec.verify import VERIFIERS, Chooser, Rule, Typical

RULES = {"speculative": (1, 1, 1), "recursive": (2, 2), "block": (1, 1, 1)}
VOCAB = 112


@cache
def llama() -> Any:
    return FAMILIES["llama"].build(torch.float64)


def inputs(seed: int = 0, num_text_tokens: int = 12) -> dict[str, Tensor]:
    return prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=num_text_tokens, seed=seed)


@cache
def target_logits(tokens: tuple[int, ...]) -> Tensor:
    with torch.no_grad():
        return llama()(torch.tensor([tokens])).logits[0, -1]


def say(tokens: Sequence[int]) -> Tensor:
    """A drafter that is about right: the target's logits, disturbed."""
    generator = torch.Generator().manual_seed(hash(tuple(tokens)) % 2**31)
    logits = target_logits(tuple(tokens))
    return logits + 0.8 * torch.randn(VOCAB, generator=generator, dtype=logits.dtype)


def engine_of(
    verifier: str, drafter: Any = None, *, model: Any = None, controller: str = "fixed"
) -> Engine:
    decode = DecodeConfig(verifier=verifier, controller=controller, max_rows=3, max_nodes=12)
    drafter = drafter or SamplingDrafter(say, RULES[verifier])
    return mmspec.load(model or llama(), config=Config(decode=decode), drafter=drafter)


def target_texts(options: dict[str, Any]) -> dict[tuple[int, ...], float]:
    """Their probabilities, from the model's own logits."""
    return texts_of(target_logits, tuple(inputs()["input_ids"][0].tolist()), options)


@pytest.mark.slow
def test_the_real_noise_draws_from_the_targets_distribution() -> None:
    """Chi-square of whole texts over seeds; block, whose steps look at more than they keep."""
    options: dict[str, Any] = {"temperature": 1.5, "top_k": 2, "max_new_tokens": 3}
    engine, own = engine_of("block"), target_texts(options)
    texts = [engine.generate(inputs(), seed=seed, **options).tokens for seed in range(400)]
    counts = {text: texts.count(text) for text in own}
    assert sum(counts.values()) == len(texts)
    expected = {text: probability * len(texts) for text, probability in own.items()}
    chi_square = sum((counts[text] - expected[text]) ** 2 / expected[text] for text in own)
    assert len(own) == 8 and chi_square < 24.3, f"chi-square {chi_square}, 7 degrees of freedom"


@pytest.mark.parametrize("verifier", RULES)
def test_no_random_word_is_used_twice(verifier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh noise for every step is what makes the steps' exactness the text's."""
    from mmspec import noise

    used: list[tuple[int, ...]] = []
    philox = noise.philox

    def counted(counter: tuple[Any, ...], key: tuple[int, int]) -> Any:
        used.append((*counter[1:], *key))
        return philox(counter, key)

    monkeypatch.setattr(noise, "philox", counted)
    result = engine_of(verifier).generate(
        inputs(), seed=3, temperature=1.5, top_k=0, max_new_tokens=24
    )
    assert result.stats.steps < 23 and len({stream for _, _, stream, *_ in used}) > 3
    assert len(used) == len(set(used))


# LAW: what the engine promises of such texts


@pytest.mark.parametrize(("verifier", "controller"), [*product(RULES, ["fixed", "auto"])])
def test_greedy_text_is_the_plain_one(verifier: str, controller: str) -> None:
    plain = mmspec.load(llama(), drafter="none")
    expected = plain.generate(inputs(), temperature=0.0, max_new_tokens=16)
    result = engine_of(verifier, controller=controller).generate(
        inputs(), temperature=0.0, max_new_tokens=16, speculate=True
    )
    assert result.tokens == expected.tokens and result.stats.is_lossless
    assert result.stats.tokens_per_step > 1.0


@pytest.mark.parametrize("verifier", RULES)
def test_the_same_seed_and_drafts_give_the_same_text_alone_and_in_a_batch(verifier: str) -> None:
    engine = engine_of(verifier)
    options: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.1}
    requests = [
        mmspec.Request(inputs(n, 8 + 5 * n), seed=n, max_new_tokens=18 - n, **options)
        for n in range(4)
    ]
    together = engine.generate(requests)
    assert [r.tokens for r in together] == [engine.generate(one).tokens for one in requests]
    assert engine.generate(requests[0], seed=9).tokens != together[0].tokens
    counts = [result.stats.by_drafter["sampling"] for result in together]
    assert all(0 < count.accepted < count.proposed for count in counts)


@pytest.mark.parametrize("verifier", RULES)
def test_an_image_request_is_drafted_for_as_well(verifier: str) -> None:
    model = FAMILIES["qwen2_vl"].build(torch.float64)
    prompt = prompt_inputs(FAMILIES["qwen2_vl"], "image_middle", num_text_tokens=20)
    options: dict[str, Any] = {"temperature": 0.7, "top_k": 3, "max_new_tokens": 16, "seed": 2}
    plain = mmspec.load(model, drafter="none")
    known = (*prompt["input_ids"][0].tolist(), *plain.generate(prompt, **options).tokens)

    def hint(tokens: Sequence[int]) -> Tensor:
        """Expects the seed's own text, as long as the text is that."""
        logits = torch.zeros(model.config.get_text_config().vocab_size)
        if tuple(tokens) == known[: len(tokens)] and len(tokens) < len(known):
            logits[known[len(tokens)]] = 9.0
        return logits

    engine = engine_of(verifier, SamplingDrafter(hint, RULES[verifier]), model=model)
    one, other = engine.generate([mmspec.Request(prompt, **options)] * 2)
    assert one.error is None and one.tokens == other.tokens
    assert one.stats.by_drafter["sampling"].accepted > 0
    greedy = {**options, "temperature": 0.0, "top_k": None}
    assert engine.generate(prompt, **greedy).tokens == plain.generate(prompt, **greedy).tokens


@pytest.mark.parametrize("verifier", RULES)
def test_plain_decoding_under_a_rule_is_the_seeds_own_text(verifier: str) -> None:
    plain = mmspec.load(llama(), drafter="none")
    options: dict[str, Any] = {"seed": 5, "temperature": 1.0, "max_new_tokens": 12}
    result = engine_of(verifier).generate(inputs(), speculate=False, **options)
    assert result.tokens == plain.generate(inputs(), **options).tokens


@pytest.mark.parametrize("verifier", RULES)
def test_the_controller_decides_before_the_draw_and_scores_what_was_drawn(
    verifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(verifier, controller="auto")
    drawn, scored = list[TokenTree](), list[TokenTree]()
    original, score = SamplingSession.propose, engine.target.score

    def drafted(self: Any, tokens: Sequence[int], budget: int) -> TokenTree:
        drawn.append(original(self, tokens, budget))
        return drawn[-1]

    def seen(trees: Sequence[TokenTree], *rest: Any, **options: Any) -> Any:
        scored.extend(trees)
        return score(trees, *rest, **options)

    monkeypatch.setattr(SamplingSession, "propose", drafted)
    monkeypatch.setattr(engine.target, "score", seen)
    engine.generate(inputs(), temperature=1.2, top_k=0, seed=1, max_new_tokens=60)
    whole = [tree for tree in scored if tree.num_nodes > 1]
    assert drawn and len(drawn) == len(whole) < len(scored)
    for before, after in zip(drawn, whole, strict=True):
        # Cut at most at a depth, where the text ends.
        assert after.tokens == before.cut(max(after.depths)).tokens and after.q is not None


class Counting(LogitsProcessor):
    """Keeps state: knows how often it was called, and expects to be called once a token."""

    def __init__(self, prompt_length: int) -> None:
        self.calls = 0
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        assert input_ids.shape[1] == self.prompt_length + self.calls, "called out of order"
        self.calls += 1
        return scores


@pytest.mark.parametrize("verifier", ["speculative", "recursive"])
def test_a_processor_with_state_is_called_once_a_token(verifier: str) -> None:
    counting = Counting(12)
    result = engine_of(verifier).generate(
        inputs(), seed=1, temperature=1.0, max_new_tokens=16, logits_processors=[counting]
    )
    assert counting.calls == 16 and result.stats.steps < 15


@pytest.mark.parametrize("verifier", ["block", "typical_lossy"])
def test_a_rule_that_looks_ahead_refuses_a_processor_with_state(verifier: str) -> None:
    engine = engine_of(verifier, SamplingDrafter(target_logits_of, (1, 1)))
    with pytest.raises(ConfigError, match=r"looks ahead.*Counting.*coupled or speculative"):
        engine.generate(inputs(), seed=1, temperature=1.0, logits_processors=[Counting(12)])


def target_logits_of(tokens: Sequence[int]) -> Tensor:
    return target_logits(tuple(tokens))


def test_typical_acceptance_takes_any_tree_and_shows_that_it_is_lossy() -> None:
    plain = mmspec.load(llama(), drafter="none")
    options: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "max_new_tokens": 16, "seed": 4}
    truth = plain.generate(inputs(), **options).tokens
    drafter = Adversary({tuple(inputs()["input_ids"][0].tolist()): truth}, VOCAB)
    result = engine_of("typical_lossy", drafter).generate(inputs(), **options)
    assert not result.stats.is_lossless and result.stats.tokens_per_step > 1.0
    greedy = engine_of("typical_lossy", drafter).generate(inputs(), **{**options, "temperature": 0})
    assert greedy.stats.is_lossless
    assert greedy.tokens == plain.generate(inputs(), **{**options, "temperature": 0}).tokens


def test_a_rule_with_parameters_of_ones_own() -> None:
    rule = Rule(Typical(epsilon=1.0, delta=1.0), is_lossless=False)
    drafter = SamplingDrafter(target_logits_of, (1, 1))
    engine = Engine(engine_of("typical_lossy", drafter).target, None, [drafter], verifier=rule)
    result = engine.generate(inputs(), seed=1, temperature=1.0, max_new_tokens=4)
    assert result.stats.is_lossless is False


@pytest.mark.parametrize("choosing", ["host", "device"])
def test_a_rule_of_ones_own_walks_where_something_is_drafted_and_drawn(choosing: Choosing) -> None:
    """All else is the target's own choices, which are what was found of each node ahead."""
    known, walked = VERIFIERS["recursive"], list[TokenTree]()

    def walk(tree: TokenTree, logits: Tensor, row: Chooser) -> Verdict:
        walked.append(tree)
        return known.walk(tree, logits, row)

    drafter = SamplingDrafter(target_logits_of, (2, 1))
    rule = Rule(walk, known.weigh, needs_q=True)
    target = engine_of("recursive", drafter).target
    engine = Engine(target, None, [drafter], verifier=rule, choosing=choosing, controller="fixed")
    plain, options = Engine(target, None), {"seed": 1, "max_new_tokens": 8}
    for own in ({"temperature": 0.0}, {"temperature": 1.0, "speculate": False}):
        found, right = (e.generate(inputs(), **options, **own) for e in (engine, plain))
        assert found.tokens == right.tokens and not walked
    engine.generate(inputs(), temperature=1.0, **options)
    assert walked and all(tree.num_nodes > 1 for tree in walked)


# What is refused


def test_what_is_no_rule_is_refused_with_the_way_to_make_one() -> None:
    walk = Typical(epsilon=0.2, delta=0.5)
    with pytest.raises(ConfigError, match=r"expected one of coupled.*Rule\(function\)"):
        Engine(engine_of("block").target, None, [], verifier=walk)  # type: ignore[arg-type]


@pytest.mark.parametrize("verifier", RULES)
def test_a_drafter_without_q_is_refused_when_the_engine_is_built(verifier: str) -> None:
    with pytest.raises(ConfigError, match=r"prompt_lookup does not.*verifier=coupled"):
        engine_of(verifier, PromptLookup())
    drawing = SamplingDrafter(say, (1,))
    drawing.draws = False
    with pytest.raises(ConfigError, match="sampling does not"):
        engine_of(verifier, drawing)
    with pytest.raises(ConfigError, match=r"expected one drafter.*leave all but one out"):
        engine_of(verifier, [SamplingDrafter(say, (1,)), PromptLookup()])
    mmspec.load(llama(), drafter="none", overrides=[f"decode.verifier={verifier}"])


@pytest.mark.parametrize("verifier", ["speculative", "block"])
def test_a_drafter_of_trees_is_refused_by_a_rule_of_chains(verifier: str) -> None:
    engine = engine_of(verifier, SamplingDrafter(say, (2,)))
    with pytest.raises(ConfigError, match="not a chain"):
        engine.generate(inputs(), seed=1, temperature=1.0)


def test_a_model_that_scores_chains_only_refuses_drawn_trees() -> None:
    engine = engine_of("recursive")
    engine._drafts = replace(engine._drafts, fit=TokenTree.best_chain)
    with pytest.raises(ConfigError, match="a model that scores chains only takes no trees here"):
        engine.generate(inputs(), seed=1, temperature=1.0)


@pytest.mark.drafter_fails
def test_a_drafter_that_exceeds_its_budget_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    drafter = SamplingDrafter(say, (1,))
    drafter.start = lambda *_: Wide()  # type: ignore[method-assign,assignment,return-value]

    class Wide:
        def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
            draft = [5] * (budget + 1)
            q = torch.full((budget + 2, VOCAB), 1 / VOCAB)
            chain = TokenTree.chain(tokens[-1], draft, [0.5] * len(draft), "sampling")
            return TokenTree(chain.tokens, chain.parents, chain.confidence, chain.drafters, q)

        def observe(self, *_: object) -> None: ...

        def close(self) -> None: ...

    options: dict[str, Any] = {"seed": 1, "temperature": 1.0, "max_new_tokens": 8}
    result = engine_of("speculative", drafter).generate(inputs(), **options)
    assert (
        result.tokens == mmspec.load(llama(), drafter="none").generate(inputs(), **options).tokens
    )
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and "13 drafted nodes, expected at most 12" in warnings[0]


# The draw


@pytest.mark.parametrize("k", [1, 2])
def test_children_are_drawn_without_replacement_from_q(k: int) -> None:
    """Chi-square of the ordered draws over places."""
    logits = torch.tensor([1.0, 0.0, -torch.inf, 2.0])
    draws = [
        tuple(draw_children(logits, k, seed=1, sample=0, position=t, draw=0).tokens)
        for t in range(800)
    ]
    own = distribution(lambda run: tuple(run.draw_children(torch.softmax(logits, 0), k).tokens))
    expected = {tokens: probability * len(draws) for tokens, probability in own.items()}
    assert set(draws) == set(own)
    chi_square = sum((draws.count(t) - expected[t]) ** 2 / expected[t] for t in own)
    assert chi_square < {3: 13.8, 6: 20.5}[len(own)], chi_square


def test_a_draw_depends_on_seed_sample_place_and_number_alone() -> None:
    logits = torch.zeros(1000)
    place: dict[str, int] = {"seed": 1, "sample": 0, "position": 3, "draw": 2}
    first = draw_children(logits, 3, **place)
    assert draw_children(logits, 3, **place).tokens == first.tokens
    assert torch.equal(first.q, torch.full((1000,), 1e-3))
    for change in place:
        assert draw_children(logits, 3, **{**place, change: 7}).tokens != first.tokens


def test_no_more_children_than_q_has_tokens() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, -1e9, 0.5])
    drawn = draw_children(logits, 4, seed=0, sample=0, position=0, draw=0)
    assert sorted(drawn.tokens) == [1, 4]
