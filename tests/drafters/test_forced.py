"""forced: what a request's own processors know is drafted, by itself, and changes no text."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor

import mmspec
from mmspec.draft_guide import DraftGuide, ForcingProcessor
from mmspec.drafters.forced import Forced
from mmspec.state import Placement, Prefill, Prompt, Scores, Verdict
from mmspec.training.tiny.build import build_model, build_processor
from mmspec.tree import TokenTree


class EverySecondRun(LogitsProcessor):
    """After each token divisible by three, four fixed tokens must come."""

    def __init__(self, prompt_length: int, *, errs: int = 0) -> None:
        """`errs` is added to what it says will come."""
        self.prompt_length, self.errs = prompt_length, errs
        self.called: list[tuple[int, ...]] = []  # the answers that it was called with, in order

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        (text,) = input_ids[:, self.prompt_length :].tolist()
        self.called.append(tuple(text))
        for token in self._to_come(text)[:1]:
            only = torch.full_like(scores, -torch.inf)
            only[:, token] = scores[:, token]
            return only
        return scores

    def forced_tokens(self, ids: Sequence[int]) -> Sequence[int]:
        return [token + self.errs for token in self._to_come(ids[self.prompt_length :])]

    def _to_come(self, text: Sequence[int]) -> list[int]:
        left: list[int] = []
        for token in text:
            if left:
                left = left[1:]
            elif token % 3 == 0:
                left = [41, 43, 44, 46]
        return left


@pytest.fixture(scope="module")
def engine() -> mmspec.Engine:
    model = build_model("nano").double().eval()
    rules = {"decode.controller": "fixed", "drafter.prompt_lookup.min_match": 30}
    return mmspec.load(model, build_processor(), overrides=rules)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("errs", [0, 1])
def test_the_text_is_the_same_and_takes_fewer_steps(
    engine: mmspec.Engine, temperature: float, errs: int
) -> None:
    prompt = engine.prepare("What comes?")
    length = prompt.prompt.num_tokens  # type: ignore[union-attr]
    options = {"max_new_tokens": 60, "temperature": temperature, "seed": 3, "ignore_eos": True}
    found = []
    for speculate in (False, True):
        own = EverySecondRun(length, errs=errs)
        result = engine.generate(prompt, logits_processors=[own], speculate=speculate, **options)
        assert own.called == [result.tokens[:n] for n in range(60)], "called once a token, in order"
        found.append(result)
    plain, helped = found
    assert helped.tokens == plain.tokens
    assert (41, 43, 44, 46) in [plain.tokens[i : i + 4] for i in range(57)]
    count = helped.stats.by_drafter["forced"]
    if errs:
        assert count.accepted == 0 and helped.stats.steps == plain.stats.steps
    else:
        assert count.accepted == count.proposed > 4
        assert helped.stats.steps == plain.stats.steps - count.accepted


def test_in_a_batch_each_has_its_own_and_others_have_none(engine: mmspec.Engine) -> None:
    def requests(speculate: bool) -> list[mmspec.Request]:
        found = []
        for number, question in enumerate(["What comes?", "And what after that one?", "Why?"]):
            prompt = engine.prepare(question)
            length = prompt.prompt.num_tokens  # type: ignore[union-attr]
            own = [EverySecondRun(length)] if number < 2 else []
            options = {"temperature": 1.0, "seed": number, "ignore_eos": True}
            found.append(
                mmspec.Request(
                    prompt.prompt,
                    logits_processors=own,
                    speculate=speculate,
                    max_new_tokens=40,
                    **options,
                )
            )
        return found

    plain, helped = (engine.generate(requests(speculate)) for speculate in (False, True))
    assert [one.tokens for one in plain] == [one.tokens for one in helped]
    assert ["forced" in one.stats.by_drafter for one in helped] == [True, True, False]


def test_plain_decoding_stays_plain_and_drawn_trees_are_not_mixed() -> None:
    model, processor = build_model("nano").double().eval(), build_processor()
    for rules in ({"drafter.name": "none"}, {"decode.verifier": "speculative"}):
        rules = {"decode.controller": "fixed", **rules}
        if "drafter.name" not in rules:
            rules |= {"drafter.name": "draft_model", "drafter.draft_model.path": "nano-vlm"}
            rules |= {"drafter.draft_model.draw": "sample", "drafter.draft_model.top_k": 1}
        other = mmspec.load(model, processor, overrides=rules)
        prompt = other.prepare("What comes?")
        own = EverySecondRun(prompt.prompt.num_tokens)  # type: ignore[union-attr]
        result = other.generate(
            prompt, logits_processors=[own], max_new_tokens=20, seed=1, temperature=1.0
        )
        assert "forced" not in result.stats.by_drafter


@pytest.mark.drafter_fails
def test_a_processor_that_fails_to_say_costs_no_text(
    engine: mmspec.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = engine.prepare("What comes?")
    length = prompt.prompt.num_tokens  # type: ignore[union-attr]
    options = {"max_new_tokens": 30, "temperature": 1.0, "seed": 3}
    said = engine.generate(prompt, logits_processors=[EverySecondRun(length)], **options)
    for wrong in (lambda *_: [10**9], lambda *_: 1 / 0, lambda *_: ["a"]):
        monkeypatch.setattr(EverySecondRun, "forced_tokens", wrong)
        found = engine.generate(prompt, logits_processors=[EverySecondRun(length)], **options)
        assert found.tokens == said.tokens


def test_it_learns_how_often_it_is_right_and_keeps_to_its_budget() -> None:
    drafter, own = Forced(), EverySecondRun(0)
    assert isinstance(own, ForcingProcessor)
    guide = DraftGuide(is_greedy=True, seed=0, sample=0, prompt_length=0, forcing=(own,))
    session = drafter.start(
        Prompt(torch.tensor([3])), Prefill(torch.zeros(1), Placement(0, (0,))), guide
    )
    assert session.propose([1], 8) == TokenTree.root(1)
    assert session.propose([3], 2).tokens == (3, 41, 43)
    before = session.propose([3], 8)
    for _ in range(20):
        tree = session.propose([3], 8)
        session.observe(tree, Verdict((0, 1), (41, 7)), Scores(torch.zeros(5, 1)))
    after = session.propose([3], 8)
    assert after.confidence[1] > before.confidence[1] > 0.9
    assert after.confidence[2] < 0.3 and after.confidence[3] == before.confidence[3]
