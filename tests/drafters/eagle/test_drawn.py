"""Heads that draw, under the rules that divide by q: the texts have the target's distribution."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from eagle_heads import fitted
from families import FAMILIES, prompt_inputs
from matrix import model_of
from outcomes import Trace, distribution, texts_of
from torch import Tensor

import mmspec
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.drafters.draw import Drawing
from mmspec.drafters.eagle import Eagle
from mmspec.drafters.growing import branching
from mmspec.sampling import Sampler

OPTIONS: dict[str, Any] = {"temperature": 1.5, "top_k": 2, "max_new_tokens": 3}
RULES = {"speculative": (1,), "recursive": (2,), "block": (1, 1)}


def inputs() -> dict[str, Tensor]:
    return prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=12)


def engine_of(rule: str, version: int, profile: Sequence[int]) -> Any:
    head = fitted(model_of("llama", "float64"), version)
    drafter = Eagle(head, draw="sample", profile=profile)
    config = Config(
        decode=DecodeConfig(verifier=rule, controller="fixed", max_nodes=12),
        cache=CacheConfig(prefix_bytes=0),
    )
    return mmspec.load(model_of("llama", "float64"), config=config, drafter=drafter)


@cache
def target_texts() -> dict[tuple[int, ...], float]:
    """From the model's own logits."""

    def logits(ids: tuple[int, ...]) -> Tensor:
        with torch.no_grad():
            return model_of("llama", "float64")(torch.tensor([ids])).logits[0, -1]

    return texts_of(logits, tuple(inputs()["input_ids"][0].tolist()), OPTIONS)


def enumerated(
    rule: str, version: int, patch: pytest.MonkeyPatch, *, spoil: bool = False
) -> dict[tuple[int, ...], float]:
    """The texts' distribution over all draws, acceptances and choices of the engine itself."""
    trace = Trace()

    def draw_level(logits: Tensor, k: int, places: Any) -> Drawing:
        q = torch.softmax(logits.double(), -1)
        drawn = [trace.draw_children(row, k).tokens for row in q]
        tokens = torch.tensor([[*own, *[0] * (k - len(own))] for own in drawn])
        there = torch.tensor([[n < len(own) for n in range(k)] for own in drawn])
        rates = q.gather(1, tokens).where(there, 0.0)
        # What is handed on in place of what was drawn from.
        return Drawing(tokens, rates, torch.softmax(logits / 2, -1) if spoil else q)

    def pick(self: Sampler, scores: Tensor) -> int:
        return trace.draw(torch.softmax(scores.double(), -1))

    patch.setattr(branching, "draw_level", draw_level)
    patch.setattr(Sampler, "pick", pick)
    patch.setattr(Sampler, "uniforms", lambda self, count: trace.uniforms(count))
    engine = engine_of(rule, version, RULES[rule])

    def program(run: Trace) -> tuple[int, ...]:
        nonlocal trace
        trace = run
        return engine.generate(inputs(), seed=0, **OPTIONS).tokens

    return distribution(program)


@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize("rule", RULES)
def test_the_texts_have_the_targets_distribution(
    rule: str, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, own = enumerated(rule, version, monkeypatch), target_texts()
    assert len(own) == 8 and found.keys() == own.keys()
    error = max(abs(found[text] - own[text]) for text in own)
    assert error < 1e-6, f"largest error {error} (processors work in float32)"


def test_that_enumeration_catches_a_q_that_was_not_drawn_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, own = enumerated("speculative", 3, monkeypatch, spoil=True), target_texts()
    assert max(abs(found.get(text, 0.0) - own[text]) for text in own) > 1e-3


def test_q_is_over_the_targets_vocabulary() -> None:
    """The head drafts 90 of its 112 tokens."""
    engine = engine_of("recursive", 3, (3, 2))
    seen: list[Any] = []
    (drafter,) = engine.drafters
    right = type(drafter).propose_together

    def watching(self: Any, *args: Any) -> Any:
        trees = right(self, *args)
        seen.extend(trees)
        return trees

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(drafter), "propose_together", watching)
        engine.generate(inputs(), temperature=1.0, top_k=0, seed=3, max_new_tokens=12)
    unknown = torch.ones(112, dtype=torch.bool)
    unknown[drafter.settings.head.target_ids] = False
    for tree in seen:
        tree.check_integrity(112)
        inner = sorted(set(tree.parents[1:]))
        if not inner:
            continue
        torch.testing.assert_close(tree.q[inner].sum(-1), torch.ones(len(inner)))
        assert not tree.q[:, unknown].any()
        for node in inner:
            assert all(tree.q[node, tree.tokens[child]] > 0 for child in tree.children(node))
