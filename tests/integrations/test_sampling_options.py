"""Random combinations of sampling options: custom_generate with a drafter is our plain decoding."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from adversary import Adversary, AdversarySession
from families import FAMILIES, prompt_inputs
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationConfig

import mmspec
from mmspec import Request, Result
from mmspec.draft_guide import DraftGuide
from mmspec.state import Prefill, Prompt, Scores, Verdict
from mmspec.tree import TokenTree

PAD, EOS, VOCAB = 0, 2, 112
TOLERANCE = 1e-5  # of a log-probability

tokens = st.integers(3, 99)
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "do_sample": st.booleans(),
    "temperature": st.floats(0.3, 2.0),
    "top_k": st.integers(0, 60),
    "top_p": st.floats(0.3, 1.0),
    "min_p": st.floats(0.0, 0.3),
    "typical_p": st.floats(0.4, 1.0),
    "epsilon_cutoff": st.floats(0.0, 0.01),
    "eta_cutoff": st.floats(0.0, 0.01),
    "repetition_penalty": st.floats(0.8, 1.5),
    "encoder_repetition_penalty": st.floats(0.8, 1.5),
    "no_repeat_ngram_size": st.integers(0, 3),
    "encoder_no_repeat_ngram_size": st.integers(0, 3),
    "min_new_tokens": st.integers(0, 12),
    "min_length": st.integers(0, 40),
    "bad_words_ids": st.lists(st.lists(tokens, min_size=1, max_size=2), min_size=1, max_size=3),
    "sequence_bias": st.lists(
        st.tuples(st.lists(tokens, min_size=1, max_size=2), st.floats(-9, 9)).map(list),
        min_size=1,
        max_size=3,
        unique_by=lambda pair: tuple(pair[0]),
    ),
    "suppress_tokens": st.lists(tokens, min_size=1, max_size=9),
    "begin_suppress_tokens": st.lists(tokens, min_size=1, max_size=9),
    "exponential_decay_length_penalty": st.tuples(st.integers(1, 6), st.floats(1.0, 1.5)),
    "forced_eos_token_id": st.just(EOS),
    "renormalize_logits": st.booleans(),
    "remove_invalid_values": st.booleans(),
    "eos_token_id": st.lists(tokens, min_size=1, max_size=6, unique=True),
    "max_new_tokens": st.integers(3, 14),
}


class Counting(Adversary):
    """Says how many drafted tokens were accepted."""

    accepted = 0

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> "CountingSession":
        session = super().start(prompt, prefill, guide)
        return CountingSession(self, session)


class CountingSession:
    def __init__(self, drafter: Counting, session: AdversarySession) -> None:
        self._drafter, self._session = drafter, session

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        return self._session.propose(tokens, budget)

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        self._drafter.accepted += verdict.num_accepted

    def close(self) -> None:
        pass


@st.composite
def combinations(draw: st.DrawFn) -> dict[str, Any]:
    """Some of the options, prompts of a few lengths, and how drafts are made of them."""
    names = draw(st.sets(st.sampled_from(sorted(OPTIONS)), max_size=9)) | {"max_new_tokens"}
    options = {name: draw(OPTIONS[name]) for name in sorted(names)}
    return {
        "options": options,
        "lengths": draw(st.lists(st.integers(4, 30), min_size=1, max_size=3)),
        "samples": draw(st.integers(1, 2)) if options.get("do_sample") else 1,
        "seed": draw(st.integers(0, 2**64 - 1)),
        "max_nodes": draw(st.integers(4, 24)),
        "controller": draw(st.sampled_from(["fixed", "fixed", "auto"])),
    }


@cache
def calm_model() -> Any:
    """The tiny llama with its head at a third of its gain: the logits then spread as far as a real
    model's, and what float32 rounds off in its layers stays below the tolerance. As it is, the
    same text in another batch moves its log-probabilities by 1.1e-5."""
    model = FAMILIES["llama"].build(torch.float32)
    with torch.no_grad():
        model.lm_head.weight /= 3
    return model


@cache
def plain_engine() -> mmspec.Engine:
    return mmspec.load(calm_model(), drafter="none")


def check(case: dict[str, Any]) -> int:
    """Compares the two; returns how many drafted tokens were accepted."""
    model = calm_model()
    config = GenerationConfig(
        **{"eos_token_id": EOS, "pad_token_id": PAD, **case["options"]},
        num_return_sequences=case["samples"],
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    rows = [
        prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=length, seed=row)["input_ids"]
        for row, length in enumerate(case["lengths"])
    ]
    plain = [_plain(case, config, rows, number) for number in range(len(rows))]
    truths = {tuple(r[0].tolist()): p.tokens for r, p in zip(rows, plain, strict=True)}
    drafter = Counting(truths, VOCAB)
    longest = max(case["lengths"])
    ids = torch.cat(
        [torch.nn.functional.pad(r, (longest - r.shape[1], 0), value=PAD) for r in rows]
    )
    lengths = torch.tensor(case["lengths"]).unsqueeze(1)
    mask = (torch.arange(longest) >= longest - lengths).long()
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=config,
        custom_generate=mmspec.custom_generate,
        drafter=drafter,
        **{name: case[name] for name in ("seed", "max_nodes", "controller")},
    )
    for number, prompt in enumerate(plain):
        for sample in prompt.samples:
            row = number * case["samples"] + sample.sample
            text = output.sequences[row, longest:].tolist()
            length = len(sample.tokens)
            assert text == [*sample.tokens, *[PAD] * (len(text) - length)]
            for mine, theirs in (
                (output.scores, sample.scores),
                (output.logits, sample.logits),
            ):
                _compare([step[row] for step in mine[:length]], theirs, sample.tokens)
    return drafter.accepted


def _plain(
    case: dict[str, Any], config: GenerationConfig, rows: Sequence[Tensor], number: int
) -> Result:
    """Our plain decoding of one prompt alone."""
    padding = max(case["lengths"]) - case["lengths"][number]
    own = GenerationConfig(**config.to_dict())
    own.num_return_sequences = 1
    own.min_length = max((config.min_length or 0) - padding, 0)
    seed = (case["seed"] + number) % 2**64
    request = Request(
        {"input_ids": rows[number]},
        generation_config=own,
        seed=seed,
        n=case["samples"],
        output_scores=True,
        output_logits=True,
        speculate=False,
    )
    return plain_engine().generate(request)


def _compare(mine: Sequence[Tensor], theirs: Tensor | None, chosen: Sequence[int]) -> None:
    """The log-probabilities of the chosen and the likeliest tokens, and which are possible."""
    assert theirs is not None and len(mine) == len(theirs) == len(chosen)
    for step, other, token in zip(mine, theirs, chosen, strict=True):
        first, second = step.log_softmax(-1), other.log_softmax(-1)
        assert torch.equal(first.isinf(), second.isinf())
        shown = [token, *second.topk(min(5, int(second.isfinite().sum()))).indices.tolist()]
        difference = float((first - second)[shown].abs().max())
        assert difference <= TOLERANCE, f"log-probabilities of {shown} differ by {difference:.1e}"


pytestmark = pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
SETTINGS = settings(
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),  # shrinking would take minutes
)
_accepted: list[int] = []


@settings(SETTINGS, max_examples=20)
@given(combinations())
def test_any_options_give_our_plain_text_and_logprobs(case: dict[str, Any]) -> None:
    _accepted.append(check(case))


@pytest.mark.slow
@settings(SETTINGS, max_examples=300)
@given(combinations())
def test_300_combinations_give_our_plain_text_and_logprobs(case: dict[str, Any]) -> None:
    _accepted.append(check(case))


def test_drafts_were_accepted_meanwhile() -> None:
    if not _accepted:
        pytest.skip("runs after the tests above")
    assert sum(_accepted) > len(_accepted), f"accepted of each case: {_accepted}"
