"""How right the bundled model is, on freely generated answers to held-out samples.

Teacher-forced error is no measure here: after one wrong jump a model goes on at the wrong place,
which only its own continuation shows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from transformers import LlavaForConditionalGeneration

from mmspec.bench.loops import loop_start
from mmspec.training.tiny.batch import pixel_tensor, prompt_ids
from mmspec.training.tiny.build import BOS, EOS, NUM_SPECIALS, PAD
from mmspec.training.tiny.data import (
    Sample,
    caption,
    chart,
    count,
    extract,
    passage,
    quote,
    receipt,
    scan,
    span,
    story,
)


@dataclass(frozen=True)
class Case:
    """One row of the evaluation: what makes its samples, and how many go at once."""

    make: Callable[..., Sample]
    num_chars: int | None = None  # of the document, for a task that has one
    batch_size: int = 10
    share: float = 1.0  # of the samples asked for: slow ones get fewer

    def sample(self, rng: Random) -> Sample:
        """The next held-out sample."""
        if self.num_chars is None:
            return self.make(rng, held_out=True)
        return self.make(rng, held_out=True, num_chars=self.num_chars)


SUITE = {
    "receipt": Case(receipt),
    "scan": Case(scan),
    "caption": Case(caption),
    "count": Case(count),
    "chart": Case(chart),
    "quote_500": Case(quote, 500),
    "quote_1k": Case(quote, 1000),
    "quote_2k": Case(quote, 2000),
    "quote_4k": Case(quote, 4000, batch_size=2),
    "quote_8k": Case(quote, 8000, batch_size=1, share=0.34),
    "span_1k": Case(span, 1000),
    "span_4k": Case(span, 4000, batch_size=2),
    "passage_500": Case(passage, 500),
    "passage_1k": Case(passage, 1000),
    "extract_500": Case(extract, 500),
    "extract_1k": Case(extract, 1000),
    "story": Case(story),
}


@dataclass(frozen=True)
class Score:
    """One row of the evaluation."""

    samples: int
    exact: float  # share of answers that are right to the last character
    character_error: float  # edit distance over the right answers' length
    lines_right: float  # share of the right answers' lines that stand in the generated ones
    loops: float  # share of generated texts with a 20-gram seen three times


def edit_distance(got: str, wanted: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(wanted) + 1))
    for i, mine in enumerate(got, 1):
        corner, row[0] = row[0], i
        for j, theirs in enumerate(wanted, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (mine != theirs))
    return row[-1]


@torch.no_grad()
def generate(
    model: LlavaForConditionalGeneration, samples: Sequence[Sample], max_new_tokens: int
) -> list[str]:
    """Greedy answers of samples that all have a picture or all have none."""
    prompts = [prompt_ids(sample) for sample in samples]
    seq = max(map(len, prompts))
    token_ids = torch.tensor([[PAD] * (seq - len(prompt)) + prompt for prompt in prompts])
    inputs = {"input_ids": token_ids, "attention_mask": (token_ids != PAD).long()}
    if samples[0].pixels is not None:
        inputs["pixel_values"] = pixel_tensor(samples)
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    output = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    answers = []
    for row in output[:, seq:].tolist():
        row = row[: row.index(EOS)] if EOS in row else row
        text = bytes(token - NUM_SPECIALS for token in row if token >= NUM_SPECIALS)
        answers.append(text.decode("latin-1"))
    return answers


def score(samples: Sequence[Sample], answers: Sequence[str]) -> Score:
    """Compares generated answers with the right ones."""
    pairs = list(zip(answers, (sample.answer for sample in samples), strict=True))
    lines = [(line, got.splitlines()) for got, wanted in pairs for line in wanted.splitlines()]
    length = sum(len(wanted) for _, wanted in pairs)
    return Score(
        samples=len(pairs),
        exact=sum(got == wanted for got, wanted in pairs) / len(pairs),
        character_error=sum(edit_distance(*pair) for pair in pairs) / length,
        lines_right=sum(line in got for line, got in lines) / len(lines),
        loops=sum(loop_start(got) < len(got) for got in answers) / len(pairs),
    )


def evaluate(
    model: LlavaForConditionalGeneration,
    *,
    num_samples: int,
    tasks: Sequence[str] = tuple(SUITE),
    seed: int = 2,
) -> Iterator[tuple[str, Score, list[tuple[Sample, str]]]]:
    """Yields (task, score, samples with answers) one task after the other."""
    for task in tasks:
        case = SUITE[task]
        samples = held_out(task, num_samples=num_samples, seed=seed)
        answers: list[str] = []
        for first in range(0, len(samples), case.batch_size):
            chunk = samples[first : first + case.batch_size]
            limit = max(len(sample.answer) for sample in chunk) + 40
            answers += generate(model, chunk, limit)
        yield task, score(samples, answers), list(zip(samples, answers, strict=True))


def held_out(task: str, *, num_samples: int, seed: int) -> list[Sample]:
    """The evaluation's samples of one task, fewer where the task is slow."""
    rng = Random(f"evaluation/{task}/{seed}")
    case = SUITE[task]
    return [case.sample(rng) for _ in range(max(1, round(num_samples * case.share)))]
