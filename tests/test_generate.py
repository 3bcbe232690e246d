"""What `generate` gives beside one text: samples, log-probabilities, scores; and what steers it."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from adversary import Adversary
from families import FAMILIES, prompt_inputs
from matrix import letters, model_of
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

import mmspec
from mmspec import Request, Result
from mmspec.config import Config, DecodeConfig
from mmspec.drafters.base import Drafter
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.engine import Engine
from mmspec.errors import InputError
from mmspec.logprobs import TokenLogprobs
from mmspec.row import Row
from mmspec.training.tiny.build import build_model, build_processor

SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "max_new_tokens": 16, "seed": 5}
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 16}


def engine(
    family: str = "llama", dtype: str = "float64", *, truth: Result | None = None
) -> mmspec.Engine:
    """One that drafts a lot, and wrongly; `truth`, of `prompt()`, is hidden among its drafts."""
    config = Config(decode=DecodeConfig(max_nodes=12, max_rows=4, controller="fixed"))
    drafter: Drafter = PromptLookup(min_match=1, min_confidence=0.0, max_depth=6)
    if truth is not None:
        drafter = Adversary({tuple(prompt()["input_ids"][0].tolist()): truth.tokens}, 112)
    return mmspec.load(model_of(family, dtype), config=config, drafter=drafter)


def prompt(row: int = 0, family: str = "llama", layout: str = "text") -> dict[str, Tensor]:
    return prompt_inputs(
        FAMILIES[family],
        layout,  # type: ignore[arg-type]
        num_text_tokens=(30, 17, 24)[row],
        seed=row,
        repetitive=True,
    )


def accepted(result: Result) -> int:
    return sum(length * count for length, count in result.stats.accepted_lengths.items())


# Samples


def test_n_samples_are_those_that_come_one_by_one() -> None:
    together = engine().generate(prompt(), n=3, **SAMPLED)
    assert [sample.sample for sample in together.samples] == [0, 1, 2]
    for number, sample in enumerate(together.samples):
        alone = engine().generate(prompt(), sample=number, speculate=False, **SAMPLED)
        assert sample.tokens == alone.tokens
        assert sample.seed == 5
    assert len({sample.tokens for sample in together.samples}) == 3
    assert together.tokens == together.samples[0].tokens


def test_each_request_of_a_batch_has_its_own_number_of_samples() -> None:
    batch = [Request(prompt(0), n=3, **SAMPLED), Request(prompt(1)), Request(prompt(2), n=2)]
    results = engine().generate(batch, max_new_tokens=8, seed=1)
    assert [len(result.samples) for result in results] == [3, 1, 2]
    for row, result in enumerate(results):
        for sample in result.samples:
            alone = engine().generate(
                batch[row], n=1, sample=sample.sample, max_new_tokens=8, seed=1
            )
            assert sample.tokens == alone.tokens


def test_samples_without_a_seed_share_the_one_that_was_drawn() -> None:
    options = {**SAMPLED, "seed": None}
    first = engine().generate(prompt(), n=2, **options)
    again = engine().generate(prompt(), n=2, **{**SAMPLED, "seed": first.seed})
    assert [s.tokens for s in first.samples] == [s.tokens for s in again.samples]


class CountsCalls(LogitsProcessor):
    """Forbids token 5 at its even calls: two samples that shared it would take turns."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.calls += 1
        scores[:, 3 + self.calls % 50] += 20.0
        return scores


def test_samples_do_not_share_the_state_of_a_processor() -> None:
    results = engine().generate(prompt(), n=2, logits_processors=[CountsCalls()], **SAMPLED)
    for sample in results.samples:
        alone = engine().generate(
            prompt(), sample=sample.sample, logits_processors=[CountsCalls()], **SAMPLED
        )
        assert sample.tokens == alone.tokens


# Log-probabilities


def native_logprobs(
    family: str, dtype: str, inputs: dict[str, Tensor], text: Sequence[int]
) -> Tensor:
    """(prompt + text, vocab): of what follows each token, from one forward of the whole."""
    model = model_of(family, dtype)
    ids = torch.cat([inputs["input_ids"], torch.tensor([list(text)], dtype=torch.long)], dim=1)
    with torch.no_grad():
        return model(input_ids=ids).logits[0].double().log_softmax(-1)


def check(places: Sequence[TokenLogprobs | None], expected: Tensor, tokens: Sequence[int]) -> None:
    for place, row, token in zip(places, expected, tokens, strict=True):
        assert place is not None
        assert place.chosen.token == token
        assert place.chosen.logprob == pytest.approx(float(row[token]), abs=1e-5)
        values, ids = row.topk(len(place.top))
        assert [c.token for c in place.top] == ids.tolist()
        assert [c.logprob for c in place.top] == pytest.approx(values.tolist(), abs=1e-5)


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logprobs_are_the_log_softmax_of_the_model(options: dict[str, Any], dtype: str) -> None:
    result = engine(dtype=dtype).generate(
        prompt(), logprobs=4, prompt_logprobs=2, repetition_penalty=1.3, **options
    )
    expected = native_logprobs("llama", dtype, prompt(), result.tokens)
    ids = prompt()["input_ids"][0].tolist()
    assert result.logprobs is not None and result.prompt_logprobs is not None
    check(result.logprobs, expected[len(ids) - 1 : -1], result.tokens)
    assert result.prompt_logprobs[0] is None
    check(result.prompt_logprobs[1:], expected[: len(ids) - 1], ids[1:])
    assert {len(place.top) for place in result.logprobs} == {4}


@pytest.mark.parametrize("of", ["raw", "processed"])
def test_logprobs_are_the_same_with_and_without_speculation(of: str) -> None:
    options = {**SAMPLED, "max_new_tokens": 40, "logprobs": 3, "logprobs_of": of, "n": 2}
    plain = engine(dtype="float32").generate(prompt(), speculate=False, **options)
    fast = engine(dtype="float32", truth=plain).generate(prompt(), **options)
    assert accepted(fast) > 0
    for one, other in zip(fast.samples, plain.samples, strict=True):
        assert one.logprobs is not None and other.logprobs is not None
        for a, b in zip(one.logprobs, other.logprobs, strict=True):
            assert a.chosen.token == b.chosen.token
            assert a.chosen.logprob == pytest.approx(b.chosen.logprob, abs=1e-5)
            assert [c.token for c in a.top] == [c.token for c in b.top]


def test_processed_logprobs_are_of_the_distribution_that_is_sampled_from() -> None:
    options = {**SAMPLED, "top_k": 3, "logprobs": 10, "logprobs_of": "processed"}
    result = engine().generate(prompt(), output_scores=True, **options)
    assert result.logprobs is not None and result.scores is not None
    assert result.scores.shape == (16, model_of("llama", "float64").config.vocab_size)
    for place, scores in zip(result.logprobs, result.scores, strict=True):
        assert len(place.top) == 3  # those that top-k left
        assert sum(torch.tensor(c.logprob).exp() for c in place.top) == pytest.approx(1.0, abs=1e-5)
        logprob = float(scores.log_softmax(-1)[place.chosen.token])
        assert place.chosen.logprob == pytest.approx(logprob, abs=1e-6)


def test_zero_logprobs_are_the_chosen_tokens_own() -> None:
    result = engine().generate(prompt(), logprobs=0, prompt_logprobs=0, **GREEDY)
    assert result.logprobs is not None
    assert [place.top for place in result.logprobs] == [()] * 16
    plain = engine().generate(prompt(), **GREEDY)
    assert plain.logprobs is None and plain.prompt_logprobs is None and plain.scores is None


def test_placeholders_of_an_image_have_no_logprobs() -> None:
    inputs = prompt(family="llava", layout="image_middle")
    result = engine("llava").generate(inputs, n=2, prompt_logprobs=1, **GREEDY)
    is_image = inputs["input_ids"][0] == model_of("llava", "float64").config.image_token_id
    assert is_image.any() and result.prompt_logprobs is not None
    missing = [place is None for place in result.prompt_logprobs]
    assert missing == [True, *is_image[1:].tolist()]
    assert result.others[0].prompt_logprobs == result.prompt_logprobs


def test_logprobs_name_their_tokens_where_there_is_a_tokenizer() -> None:
    tiny = mmspec.load(build_model("tiny").double().eval(), build_processor())
    result = tiny.generate("red square", logprobs=2, max_new_tokens=4, temperature=0)
    assert result.logprobs is not None and tiny.tokenizer is not None
    for place in result.logprobs:
        for candidate in (place.chosen, *place.top):
            assert candidate.text == tiny.tokenizer.decode([candidate.token])


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_kept_scores_are_those_of_transformers_generate(penalty: float) -> None:
    expected = model_of("llama", "float64").generate(
        **prompt(),
        max_new_tokens=16,
        do_sample=False,
        repetition_penalty=penalty,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    options = {"repetition_penalty": penalty, **GREEDY}
    truth = engine().generate(prompt(), speculate=False, **options)
    result = engine(truth=truth).generate(
        prompt(), output_scores=True, output_logits=True, **options
    )
    assert accepted(result) > 0, "nothing was accepted: this proves little"
    torch.testing.assert_close(result.scores, torch.cat(expected.scores), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.logits, torch.cat(expected.logits), atol=1e-5, rtol=0)


# Steering


def even_after_odd(index: int, ids: Tensor) -> list[int]:
    """Another set at every place and for every request."""
    return [token for token in range(3, 100) if token % 3 == (int(ids[-1]) + index) % 3]


def test_allowed_tokens_are_those_of_transformers_generate() -> None:
    results = engine().generate(
        [Request(prompt(row)) for row in range(3)],
        prefix_allowed_tokens_fn=even_after_odd,
        **GREEDY,
    )
    for row, result in enumerate(results):
        expected = model_of("llama", "float64").generate(
            **prompt(row),
            max_new_tokens=16,
            do_sample=False,
            prefix_allowed_tokens_fn=lambda _, ids, row=row: even_after_odd(row, ids),
        )
        assert list(result.tokens) == expected[0, prompt(row)["input_ids"].shape[1] :].tolist()


class Watches(StoppingCriteria):
    """Notes what it is called with; ends the text after `most` tokens."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.seen: list[list[int]] = []
        self.scores: list[int | None] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: object) -> Tensor:
        self.seen.append(input_ids[0].tolist())
        self.scores.append(scores and sum(map(len, scores)))  # (1, vocab) each
        return torch.full((1,), len(self.seen) == self.most)


@pytest.mark.parametrize("keeps", [False, True])
def test_stopping_criteria_are_asked_once_a_token_in_order(keeps: bool) -> None:
    watches, free = Watches(9), engine().generate(prompt(), **GREEDY)
    options = {"stopping_criteria": [watches], "output_scores": keeps, **GREEDY}
    result = engine(truth=free).generate(prompt(), **options)
    assert accepted(result) > 0, "nothing was accepted: this proves little"
    assert result.finish_reason == "stop" and result.tokens == free.tokens[:9]
    ids = prompt()["input_ids"][0].tolist()
    assert watches.seen == [ids + list(free.tokens[: n + 1]) for n in range(9)]
    assert watches.scores == [n + 1 if keeps else None for n in range(9)]


def test_samples_have_their_own_stopping_criteria() -> None:
    result = engine().generate(prompt(), n=3, stopping_criteria=[Watches(4)], **SAMPLED)
    assert [len(sample.tokens) for sample in result.samples] == [4, 4, 4]


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_a_failing_criterion_ends_its_request_alone(num_tokens: int) -> None:
    def fails(ids: Tensor, scores: Any) -> bool:
        if ids.shape[1] == prompt(0)["input_ids"].shape[1] + num_tokens:
            raise KeyError("criterion")
        return False

    requests = [Request(prompt(0), stopping_criteria=[fails]), Request(prompt(1))]  # type: ignore[list-item]
    speaking = mmspec.load(model_of("llama", "float64"), letters())
    first, second = speaking.generate(requests, **GREEDY)
    assert first.finish_reason == "error" and "criterion" in str(first.error)
    free = speaking.generate(prompt(0), **GREEDY | {"max_new_tokens": num_tokens})
    assert (first.tokens, first.text) == (free.tokens, free.text)
    assert second.error is None and len(second.tokens) == 16


def test_a_likely_token_that_the_tokenizer_fails_at_has_no_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As slow tokenizers do beyond their vocabulary. Nothing ends for it."""
    speaking = mmspec.load(model_of("llama", "float64"), tokenizer := letters())
    asked = GREEDY | {"logprobs": 3}
    decode, free = tokenizer.decode, speaking.generate(prompt(), **asked)
    assert free.logprobs is not None
    bad = free.logprobs[1].top[2].token

    def failing(ids: list[int]) -> Any:
        if ids == [bad]:
            raise ValueError("bytes must be in range(0, 256)")
        return decode(ids)

    monkeypatch.setattr(tokenizer, "decode", failing)
    result = speaking.generate(prompt(), **asked)
    assert result.tokens == free.tokens and result.logprobs is not None
    for place, right in zip(result.logprobs, free.logprobs, strict=True):
        for one, known in zip((place.chosen, *place.top), (right.chosen, *right.top), strict=True):
            assert one.text == (None if one.token == bad else known.text)


@pytest.mark.parametrize(
    "limit",
    [{"max_time": 1e-9}, {"generation_config": GenerationConfig(max_time=1e-9)}],
    ids=["option", "generation_config"],
)
def test_the_time_limit_ends_a_text_after_the_token_in_hand(limit: dict[str, Any]) -> None:
    result = engine().generate(prompt(), **limit, **GREEDY)
    assert result.finish_reason == "stop" and len(result.tokens) == 1


def test_a_stream_is_of_one_sample() -> None:
    with pytest.raises(InputError, match="n=2"):
        engine().stream(prompt(), n=2)
    stream = engine().stream(prompt(), sample=1, logprobs=1, **SAMPLED)
    assert not list(stream)  # no tokenizer, no text
    assert stream.result.logprobs is not None
    assert stream.result.tokens == engine().generate(prompt(), n=2, **SAMPLED).others[0].tokens


def test_the_time_of_a_sample_begins_when_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more samples than places, the later ones wait for the earlier to end."""
    begun: list[int] = []
    opened = Engine._row

    def row(self: Engine, request: Request, index: int) -> Row:
        begun.append(sum(done.is_done for done in rows))
        rows.append(opened(self, request, index))
        return rows[-1]

    rows: list[Row] = []
    monkeypatch.setattr(Engine, "_row", row)
    engine().generate(prompt(), n=6, **SAMPLED)  # in four places
    assert begun[:4] == [0, 0, 0, 0] and min(begun[4:]) > 0
