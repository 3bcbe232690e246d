"""How well the bundled model finds one line of a long text: needles and quotes, by length.

Each document is read once, and every question is asked behind it alone. An answer is exact where
each of its tokens, its end included, is the model's most likely one after those before it: that is
when greedy decoding gives it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from transformers import DynamicCache, LlavaForConditionalGeneration

from mmspec.training.tiny.batch import prompt_ids
from mmspec.training.tiny.build import ASSISTANT, EOS, NUM_SPECIALS
from mmspec.training.tiny.data import Sample, needle, quote

LENGTHS = (1024, 4096, 16384, 32768)  # tokens of a document with its question and answer
TASKS = {"needle": needle, "quote": quote}
QUESTIONS = 8  # about one document
_ROOM = 192  # for a question and its answer


@dataclass(frozen=True)
class Found:
    """One task at one length."""

    questions: int
    exact: float  # share of answers that are right to the last character
    tokens_right: float  # share of their tokens, those before them being right


def measure(
    model: LlavaForConditionalGeneration,
    *,
    num_documents: int,
    lengths: Sequence[int] = LENGTHS,
    tasks: Sequence[str] = tuple(TASKS),
    seed: int = 2,
) -> Iterator[tuple[str, int, Found]]:
    """Yields (task, length, what was found), one after the other. Held-out words; the same
    documents for the same seed, whatever else is measured."""
    for length in lengths:
        for task in tasks:
            rng = Random(f"needles/{task}/{length}/{seed}")
            answers = [
                right for _ in range(num_documents) for right in _ask(model, task, length, rng)
            ]
            yield (
                task,
                length,
                Found(
                    len(answers),
                    sum(bool(right.all()) for right in answers) / len(answers),
                    float(torch.cat(answers).float().mean()),
                ),
            )


def _ask(
    model: LlavaForConditionalGeneration, task: str, length: int, rng: Random
) -> Iterator[Tensor]:
    """Of each question about a new document, which tokens of the answer are right."""
    make = TASKS[task]
    sample = make(rng, held_out=True, num_chars=length - _ROOM, num_questions=QUESTIONS)
    document, questions = _parted(sample)
    cache = DynamicCache(config=model.config.text_config)
    _run(model, prompt_ids(sample)[: 2 + len(document)], cache, kept=1)
    for question, answer in questions:
        ids = [*_bytes(question), ASSISTANT, *_bytes(answer)]
        wanted = torch.tensor([*_bytes(answer), EOS])
        logits = _run(model, ids, cache)
        cache.crop(-len(ids))
        yield logits[-len(wanted) :].argmax(-1) == wanted


def _parted(sample: Sample) -> tuple[str, list[tuple[str, str]]]:
    """The document, whose lines all end, and (question, answer) of each turn about it."""
    end = sample.prompt_text.rindex("\n") + 1
    first = (sample.prompt_text[end:], sample.answer)
    return sample.prompt_text[:end], [first, *((x.question, x.answer) for x in sample.follow_ups)]


@torch.no_grad()
def _run(
    model: LlavaForConditionalGeneration, ids: Sequence[int], cache: DynamicCache, *, kept: int = 0
) -> Tensor:
    """(tokens, vocab) of the last `kept` tokens, 0 for all; they join the cache."""
    output = model(
        input_ids=torch.tensor([list(ids)], device=model.device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=kept,
    )
    return output.logits[0].cpu()


def _bytes(text: str) -> list[int]:
    return [NUM_SPECIALS + byte for byte in text.encode()]
