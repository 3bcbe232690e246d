"""What steers a request: options that are values, and objects that are made anew each time."""

import random
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from draft_models import fast
from families import EOS_TOKEN
from families.vision import FIRST_MEDIA_TOKEN
from matrix import model_of
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria, WatermarkingConfig

import mmspec
from mmspec.integrations.guided import JsonGuide

LAST_LETTER = 90  # ids from 3 on that are letters of the tokenizer, and no family's placeholders
assert LAST_LETTER < FIRST_MEDIA_TOKEN


class Counting(LogitsProcessor):
    """Keeps state: who calls it more than once a token gets something else."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.calls += 1
        scores[:, 3 + self.calls * 7 % 80] += 2.0
        return scores


class Parity(LogitsProcessor):
    """Looks at the last token and at the length; forbids a third of the vocabulary."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        first = (int(input_ids[0, -1]) + input_ids.shape[1]) % 3
        scores = scores.clone()
        scores[:, first::3] = -torch.inf
        return scores


class Failing(LogitsProcessor):
    """Raises at its `at`th call."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("this processor fails by itself")
        return scores


class Template(LogitsProcessor):
    """Forces `said` at every `period`th token of the answer, and knows that it does. Its guess may
    be wrong beyond that, and may raise."""

    def __init__(self, said: Sequence[int], period: int, fault: str | None = None) -> None:
        self.said, self.period, self.fault = tuple(said), period, fault
        self.start = 0

    def for_request(self, prompt_length: int) -> "Template":
        own = Template(self.said, self.period, self.fault)
        own.start = prompt_length
        return own

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        place = (input_ids.shape[1] - self.start) % self.period
        if place < len(self.said):
            token = self.said[place]
            value = scores[:, token].clone()
            scores = torch.full_like(scores, -torch.inf)
            scores[:, token] = value
        return scores

    def forced_tokens(self, ids: Sequence[int]) -> Sequence[int]:
        place = (len(ids) - self.start) % self.period
        if self.fault == "raises" and place == 1:
            raise ValueError("nobody knows")
        if self.fault == "lies":
            return [int(ids[-1]), *self.said]
        if self.fault == "outside":
            return [*self.said[place:], 10**6]
        return self.said[place:]


class StopsAt(StoppingCriteria):
    """Ends the text at its `at`th call: who calls it more than once a token ends too early."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.left -= 1
        return torch.full((input_ids.shape[0],), self.left <= 0)


class StopsAfter(StoppingCriteria):
    """Ends the text behind any token that a number divides."""

    def __init__(self, divisor: int) -> None:
        self.divisor = divisor

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return input_ids[:, -1] % self.divisor == 0


def allowed_tokens(_: int, ids: Tensor) -> list[int]:
    return [token for token in range(3, LAST_LETTER) if (token + int(ids[-1])) % 4]


@cache
def grammar() -> LogitsProcessor:
    """JSON in a vocabulary of bytes, which the grammar alone reads the ids by; where its extra is
    missing, another one."""
    if not find_spec("llguidance"):
        return Parity()
    texts = ["<pad>", "<s>", "</s>", "Ġ", "Ċ", *map(chr, range(0x21, 0x7F))]
    vocab = {text: token for token, text in enumerate(texts)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer.decoder = decoders.ByteLevel()
    return JsonGuide(mmspec.load(model_of("llama", "float64"), fast(tokenizer))).matching()


Making = Callable[[], dict[str, Any]]  # options whose values are made anew for each request


def draw_sampling(draw: random.Random) -> dict[str, Any]:
    if draw.random() < 0.35:
        return {"temperature": 0.0}
    options: dict[str, Any] = {"temperature": draw.choice([0.3, 0.7, 1.0, 1.5]), "top_k": 0}
    for name, values in (
        ("top_k", (1, 2, 5, 40)),
        ("top_p", (0.3, 0.8, 0.95, 1.0)),
        ("min_p", (0.0, 0.05, 0.5)),
    ):
        if draw.random() < 0.3:
            options[name] = draw.choice(values)
    if draw.random() < 0.1:
        options |= draw.choice([{"do_sample": False}, {"do_sample": True, "temperature": None}])
    return options


def draw_penalties(draw: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, values in (
        ("repetition_penalty", (0.8, 1.3, 3.0)),
        ("presence_penalty", (-0.5, 0.7, 3.0)),
        ("frequency_penalty", (-0.4, 0.9, 2.0)),
        ("min_new_tokens", (1, 3, 30)),
        ("bad_words", ("a", ["q", "ab", "z z"], [" ", "x"])),
        ("logit_bias", ({7: 4.0}, {5: -100.0, 11: 3.0}, {EOS_TOKEN: 3.0})),
    ):
        if draw.random() < 0.12:
            options[name] = draw.choice(values)
    return options


CONFIGURED: tuple[dict[str, Any], ...] = (
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1},
    {"typical_p": 0.6},
    {"epsilon_cutoff": 0.01},
    {"eta_cutoff": 0.02},
    {"encoder_repetition_penalty": 1.5},
    {"encoder_no_repeat_ngram_size": 2},
    {"exponential_decay_length_penalty": (3, 1.4)},
    {"forced_eos_token_id": EOS_TOKEN},
    {"forced_bos_token_id": 8},
    {"suppress_tokens": [5, 9, 14, 20, 33]},
    {"begin_suppress_tokens": [5, 9, 14, 20, 33]},
    {"bad_words_ids": [[10], [12, 13], [40, 41, 42]]},
    {"sequence_bias": [[[21], 3.0], [[22, 23], 5.0]]},
    {"renormalize_logits": True},
    {"remove_invalid_values": True},
    {"min_length": 20},
    {"watermarking_config": WatermarkingConfig(bias=2.0, seeding_scheme="selfhash")},
    {"watermarking_config": WatermarkingConfig(bias=2.0, context_width=2)},
    {"stop_strings": ["e", "th"]},
)


def draw_configured(draw: random.Random, base: GenerationConfig) -> dict[str, Any]:
    """Options of transformers' own, that a request has by its generation_config alone."""
    if draw.random() < 0.75:
        return {}
    config = GenerationConfig.from_dict(base.to_dict())
    for chosen in draw.sample(CONFIGURED, draw.choice([1, 1, 2])):
        for name, value in chosen.items():
            setattr(config, name, value)
    return {"generation_config": config}


def draw_objects(draw: random.Random) -> list[Making]:
    made: list[Making] = []
    if draw.random() < 0.2:
        at, said = draw.randint(0, 9), [draw.randrange(3, LAST_LETTER) for _ in range(4)]
        period, fault = draw.choice([3, 6, 9]), draw.choice([None, "raises", "lies", "outside"])
        kinds: list[Callable[[], list[LogitsProcessor]]] = [
            lambda: [Counting()],
            lambda: [Parity()],
            lambda: [Failing(at)],
            lambda: [Template(said, period)],
            lambda: [Template(said, period, fault), Parity()],
            lambda: [Counting(), Template(said[:2], period, fault)],
            lambda: [grammar()],
            lambda: [grammar()],
        ]
        kind = draw.choice(kinds)
        made.append(lambda: {"logits_processors": kind()})
    if draw.random() < 0.08:
        made.append(lambda: {"prefix_allowed_tokens_fn": allowed_tokens})
    if draw.random() < 0.1:
        count, divisor = draw.randint(1, 12), draw.choice([5, 11])
        both = draw.random() < 0.3
        made.append(
            lambda: {"stopping_criteria": [StopsAt(count), *([StopsAfter(divisor)] * both)]}
        )
    return made


def draw_kept(draw: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if draw.random() < 0.25:
        options["logprobs"] = draw.choice([0, 1, 5, 200])
        options["logprobs_of"] = draw.choice(["raw", "processed"])
    for name, value in (
        ("prompt_logprobs", draw.choice([0, 3])),
        ("output_scores", True),
        ("output_logits", True),
    ):
        if draw.random() < 0.15:
            options[name] = value
    return options
