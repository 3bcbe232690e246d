"""Verdicts on differences whose cause is known."""

from dataclasses import replace

import pytest
import torch
from families import FAMILIES, prompt_inputs
from matrix import model_of
from torch import Tensor

import mmspec
import mmspec.check.run
from mmspec.check import run_check
from mmspec.check.difference import explain
from mmspec.check.rounding import rounding_bound
from mmspec.check.stress import Stress
from mmspec.engine import Engine
from mmspec.inputs import from_inputs
from mmspec.noise import gumbel
from mmspec.requests import Request, Result
from mmspec.sampling import Sampler
from mmspec.state import Prompt
from mmspec.target import Target

NEW_TOKENS = 16
SAMPLED = {"temperature": 0.7, "top_k": 0, "top_p": 1.0}


def engine_of(family: str, dtype: str = "float32") -> Engine:
    return mmspec.load(model_of(family, dtype))


def prompt_of(family: str, seed: int = 0, layout: str = "text") -> Prompt:
    inputs = prompt_inputs(FAMILIES[family], layout, seed=seed)  # type: ignore[arg-type]
    return from_inputs(inputs, model_of(family, "float32").config)


def nudged(monkeypatch: pytest.MonkeyPatch, *, at: int, by: float, tree_only: bool = True) -> None:
    """Speculative logits of generated token `at` are off: the runner-up gets `by` more than what
    it lacks to the best under the seed's noise."""
    choose = Sampler.choose

    def wrong(self: Sampler, logits: Tensor) -> int:
        if self.num_chosen == at and logits.shape[0] and getattr(self, "is_nudged", False):
            noise = gumbel(self.seed, at, logits.shape[0]) if not self.is_greedy else 0.0
            temperature = 1.0 if self.is_greedy else 0.7
            perturbed = logits / temperature + noise
            best, second = perturbed.topk(2).indices.tolist()
            logits = logits.clone()
            lead = float(perturbed[best] - perturbed[second]) * temperature
            logits[second] += lead + by
        return choose(self, logits)

    row = Engine._row

    def marked(self: Engine, request: Request, index: int) -> object:
        made = row(self, request, index)
        made.sampler.is_nudged = request.speculate  # type: ignore[attr-defined]
        return made

    monkeypatch.setattr(Sampler, "choose", wrong)
    monkeypatch.setattr(Engine, "_row", marked)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, SAMPLED], ids=["greedy", "sampled"])
def test_margin_and_error_are_those_that_were_planted(
    options: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of("llama")
    prompt = prompt_of("llama")
    request = Request(prompt, seed=5, max_new_tokens=NEW_TOKENS, **options)  # type: ignore[arg-type]
    plain = engine.generate(request, speculate=False)
    nudged(monkeypatch, at=7, by=0.05)
    other = engine.generate(request)
    found = explain(
        engine, request, plain, other, again=lambda asked: engine.generate(asked), bound=lambda: 9.0
    )
    temperature = options["temperature"] or 1.0
    assert found.token == 7
    assert (found.plain, found.other) == (plain.tokens[7], other.tokens[7])
    assert found.plain_margin is not None and found.error is not None
    assert found.other_margin == pytest.approx(0.05 / temperature, rel=1e-3)
    assert found.error == pytest.approx(found.plain_margin + found.other_margin, rel=1e-3)
    assert found.bound == pytest.approx(9.0 / temperature)
    assert found.verdict == "near-tie"  # with a bound that large


@pytest.mark.parametrize(
    ("share", "verdict", "why"),
    [(2.0, "near-tie", "within rounding"), (0.5, "bug", "something else")],
)
def test_an_error_above_what_rounding_explains_is_a_bug(
    share: float, verdict: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`share` is the bound over the error that was planted."""
    engine = engine_of("llama")
    request = Request(prompt_of("llama"), seed=0, max_new_tokens=NEW_TOKENS, temperature=0.0)
    plain = engine.generate(request, speculate=False)
    nudged(monkeypatch, at=3, by=1e-3)
    other = engine.generate(request)
    told = explain(engine, request, plain, other, again=engine.generate, bound=lambda: 1e9)
    assert told.error is not None
    limit = told.error * share
    found = explain(engine, request, plain, other, again=engine.generate, bound=lambda: limit)
    assert found.verdict == verdict
    assert why in found.why


def test_a_difference_that_does_not_come_again_is_no_near_tie() -> None:
    engine = engine_of("llama")
    request = Request(prompt_of("llama"), seed=0, max_new_tokens=NEW_TOKENS, temperature=0.0)
    plain = engine.generate(request, speculate=False)
    wrong = replace(plain, tokens=(*plain.tokens[:4], plain.tokens[4] + 1, *plain.tokens[5:]))
    found = explain(engine, request, plain, wrong, again=engine.generate, bound=lambda: 1e9)
    assert (found.verdict, found.token) == ("bug", 4)
    assert "a second time" in found.why


def test_a_text_that_ends_early_is_a_bug() -> None:
    engine = engine_of("llama")
    request = Request(prompt_of("llama"), seed=0, max_new_tokens=NEW_TOKENS, temperature=0.0)
    plain = engine.generate(request, speculate=False)
    short = replace(plain, tokens=plain.tokens[:4])
    found = explain(engine, request, plain, short, again=engine.generate, bound=lambda: 1e9)
    assert (found.verdict, found.plain, found.other) == ("bug", plain.tokens[4], None)


def test_a_nucleus_that_cuts_between_equals_is_a_near_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speculation keeps one token fewer in the nucleus: the one that the noise would choose."""
    engine = engine_of("llama")
    prompt = prompt_of("llama")
    # Seeds are tried until the noise chooses the last token that top-k keeps.
    for seed in range(200):
        request = Request(prompt, seed=seed, max_new_tokens=1, temperature=1.0, top_k=3)
        plain = engine.generate(request, speculate=False)
        logits = engine.target.model(input_ids=prompt.token_ids.unsqueeze(0)).logits[0, -1].detach()
        third, fourth = logits.topk(4).indices.tolist()[2:]
        if plain.tokens[0] == third:
            break
    lead = float(logits[third] - logits[fourth])
    choose = Sampler.choose

    def wrong(self: Sampler, given: Tensor) -> int:
        given = given.clone()
        given[fourth] += lead + 1e-4
        return choose(self, given)

    monkeypatch.setattr(Sampler, "choose", wrong)
    other = engine.generate(request)
    monkeypatch.undo()
    assert other.tokens != plain.tokens

    def again(asked: Request) -> Result:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Sampler, "choose", wrong)
            return engine.generate(asked)

    found = explain(engine, request, plain, other, again=again, bound=lambda: lead + 1e-2)
    assert found.verdict == "near-tie"
    assert "top-k or top-p cuts" in found.why


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_rounding_is_measured_on_every_family(family: str) -> None:
    """In float64 it explains next to nothing, in bfloat16 a part of the logits' spread."""
    layout = "image_middle" if FAMILIES[family].kind == "vision" else "text"
    prompt = prompt_of(family, layout=layout)
    tokens = (5, 9, 12, 40)
    exact = rounding_bound(model_of(family, "float64"), prompt, tokens)
    assert 0 < exact < 1e-9
    rough = rounding_bound(model_of(family, "bfloat16"), prompt, tokens)
    assert 1e-3 < rough < 3.0


def test_low_precision_parts_at_near_ties_alone() -> None:
    """bfloat16 on a random model, many texts: some part, none is a bug, each margin is below what
    rounding moves."""
    engine = mmspec.load(model_of("llama", "bfloat16"))
    stress = Stress(engine.target.vocab_size)
    stressed = mmspec.load(engine.target.model, drafter=stress)
    requests = [Request(prompt_of("llama", seed)) for seed in range(3)]
    report = run_check(
        engine,
        requests,
        seeds=(1,),
        sampling={"temperature": 1.0, "top_k": 0},
        max_new_tokens=40,
        stressed=(stressed, stress),
    )
    assert report.differences, "nothing parts: the test shows nothing"
    assert not report.has_bug, [found for found in report.differences if found.verdict == "bug"]
    for found in report.differences:
        assert found.error is not None and found.bound is not None
        assert found.plain_margin is not None and found.plain_margin <= 2 * found.bound
    beside = [one for one in report.comparisons if one.way == mmspec.check.run.PLAIN_BATCH]
    assert beside and not any(one.is_ours for one in beside)


def test_full_precision_is_identical_and_stress_is_accepted() -> None:
    engine = mmspec.load(model_of("qwen2_vl", "float64"))
    stress = Stress(engine.target.vocab_size)
    stressed = mmspec.load(engine.target.model, drafter=stress)
    requests = [Request(prompt_of("qwen2_vl", i, x)) for i, x in enumerate(("text", "image_last"))]
    told: list[str] = []
    report = run_check(
        engine,
        requests,
        seeds=(1,),
        sampling=SAMPLED,
        max_new_tokens=20,
        stressed=(stressed, stress),
        progress=told.append,
    )
    assert report.is_identical
    assert told[:2] == [
        "greedy (1 of 2): plain decoding",
        "greedy (1 of 2): prompt_lookup, alone (1 of 5)",
    ]
    assert told[-1].startswith("seed 1 (2 of 2): ") and told[-1].endswith("(4 of 4)")
    for one in report.comparisons:
        assert one.same_tokens == one.tokens
        if one.way.startswith("stress"):
            assert one.accepted >= 10
    assert isinstance(stressed.target, Target)


def test_the_models_own_length_of_answers_is_not_the_checks() -> None:
    model = FAMILIES["llama"].build(torch.float32)
    model.generation_config.max_new_tokens = 10**6  # no room for it
    report = run_check(
        mmspec.load(model),
        [Request(prompt_of("llama"))],
        seeds=(),
        sampling=SAMPLED,
        max_new_tokens=2,
    )
    assert report.comparisons


def test_stress_makes_trees_of_true_and_wrong_tokens() -> None:
    stress = Stress(100)
    prompt = Prompt(torch.arange(3, 9))
    stress.tell(prompt, range(20, 60))
    session = stress.start(prompt, None, None)  # type: ignore[arg-type]
    trees = [session.propose([*range(3, 9), *range(20, 20 + n)], 24) for n in range(1, 30)]
    for tree in trees:
        tree.check_integrity(100)
    deepest = [max((d for t, d in zip(x.tokens, x.depths, strict=True)), default=0) for x in trees]
    assert max(deepest) >= 4  # long paths
    assert any(tree.num_nodes > max(tree.depths) + 1 for tree in trees)  # siblings
    assert min(tree.num_nodes for tree in trees) <= 2  # and hardly a draft at all
