"""What is trained when: stages, task mix, lengths and rates as functions of the progress 0..1.

Progress counts seconds spent training, so that a faster machine sees more data, not another
order of things.
"""

from collections.abc import Mapping
from random import Random
from typing import Literal

from mmspec.training.tiny.data import TASKS, Sample, extract, passage, quote, span

Stage = Literal["see", "copy", "mix"]

SEE_UNTIL, COPY_UNTIL = 0.04, 0.07
PEAK_RATE = 0.02  # Muon's: right while the circuits form, far too noisy afterwards
BATCH_TOKENS = 3000
QUOTES = {"quote": quote, "passage": passage, "span": span}
LONG_FROM, LONG_SHARE = 0.5, 0.25  # long documents are dear: late, few, and asked about repeatedly
LONG_CHARS = (2500, 3000, 3500, 4000, 4000, 4500, 5000, 8000)

MIX: Mapping[str, float] = {  # shares of batches
    "receipt": 0.07,
    "scan": 0.11,
    "caption": 0.07,  # with 0.03, captions were forgotten
    "count": 0.08,
    "chart": 0.05,
    "quote": 0.24,
    "passage": 0.07,
    "span": 0.07,
    "extract": 0.07,
    "repeat": 0.01,
    "story": 0.16,
}


def stage(progress: float) -> Stage:
    """First the tower alone learns to see, then the text model to copy, then all tasks."""
    if progress < SEE_UNTIL:
        return "see"
    return "copy" if progress < COPY_UNTIL else "mix"


def rate(progress: float) -> float:
    """Muon's rate: constant at first, halved by a third of the way, then linearly to nothing."""
    if progress < COPY_UNTIL:
        return PEAK_RATE
    if progress < 0.3:
        return PEAK_RATE * (1 - 0.5 * (progress - COPY_UNTIL) / (0.3 - COPY_UNTIL))
    return max(PEAK_RATE * 0.5 * (1 - progress) / 0.7, 1e-5)


def batches_a_step(progress: float) -> int:
    """Small steps while circuits form (what counts is their number), larger ones for precision."""
    if progress < COPY_UNTIL:
        return 1
    return 2 if progress < 0.4 else 3


def corrupted(progress: float) -> float:
    """Share of samples whose own answer is shown with mistakes, once answers are good."""
    return 0.1 if progress > 0.25 else 0.0


def gaps(progress: float) -> float:
    """Share of samples with jumps in their position numbers, once copying is good."""
    return 0.1 if progress > 0.5 else 0.0


def longest_chars(progress: float) -> int:
    """Length of the longest usual document: long ones are dear and teach little at first."""
    for until, longest in ((0.4, 400), (0.6, 800), (0.8, 1200)):
        if progress < until:
            return longest
    return 2000


def _batch_size(num_tokens: int) -> int:
    """How many samples of so many tokens a batch has."""
    return max(1, min(16, BATCH_TOKENS // num_tokens))


def draw(progress: float, rng: Random) -> list[Sample]:
    """One batch of about BATCH_TOKENS tokens, all of one task."""
    now = stage(progress)
    if now == "copy":
        task = "repeat"
    elif now == "see":
        task = rng.choice(("receipt", "scan", "scan", "caption", "chart"))
    else:
        task = rng.choices(list(MIX), list(MIX.values()))[0]
    if task == "extract":
        num_chars = rng.randint(150, longest_chars(progress))
        return [extract(rng, num_chars=num_chars) for _ in range(_batch_size(num_chars + 40))]
    if task in QUOTES:
        num_chars = rng.randint(150, longest_chars(progress))
        if progress > LONG_FROM and rng.random() < LONG_SHARE:
            num_chars = rng.choice(LONG_CHARS)
        num_questions = rng.randint(1, 1 + num_chars // 400)
        count = _batch_size(num_chars + 120 * num_questions)
        make = QUOTES[task]
        return [make(rng, num_chars=num_chars, num_questions=num_questions) for _ in range(count)]
    sizes = {"receipt": 4, "scan": 6, "repeat": 16, "story": 12}
    if now == "see":
        return [TASKS[task](rng) for _ in range(16)]
    return [TASKS[task](rng) for _ in range(sizes.get(task, 7))]
