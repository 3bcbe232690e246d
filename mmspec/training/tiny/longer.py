"""The long variant's stage: a finished model learns to find its place in longer texts.

Positions beyond those that it was made for are reached by YaRN (see `target.context`). Reading far
distances in full is dear, so most are shown by jumps in the position numbers of shorter documents;
half of the batches are the usual ones, so that nothing else is forgotten.
"""

from math import exp, log
from random import Random

from mmspec.training.tiny import curriculum
from mmspec.training.tiny.data import Sample, needle, passage, quote, span

CONTEXT = 131072  # tokens of the long variant
PEAK_RATE = 0.001  # Muon's: what is there shall stay
LONG_SHARE = 0.5  # of batches
LONG_CHARS = (1500, 8000)  # drawn evenly on a log scale
MAKE = {"quote": quote, "needle": needle, "span": span, "passage": passage}
WEIGHTS = (0.4, 0.3, 0.2, 0.1)
_USUAL = 0.9  # the curriculum's progress whose batches go on


def stage(progress: float) -> curriculum.Stage:
    return "mix"


def rate(progress: float) -> float:
    """Up for a tenth of the way, then linearly to nothing."""
    return PEAK_RATE * min(progress * 10 + 0.1, (1 - progress) / 0.9, 1.0) + 1e-6


def batches_a_step(progress: float) -> int:
    return 3


def corrupted(progress: float) -> float:
    return 0.1


def gaps(progress: float) -> float:
    """Share of samples with jumps in their position numbers, up to the whole context."""
    return 0.5


def draw(progress: float, rng: Random) -> list[Sample]:
    """One batch of about as many tokens as the curriculum's."""
    if rng.random() >= LONG_SHARE:
        return curriculum.draw(_USUAL, rng)
    task = rng.choices(list(MAKE), WEIGHTS)[0]
    num_chars = int(exp(rng.uniform(*map(log, LONG_CHARS))))
    num_questions = 2 + num_chars // 800
    count = max(1, curriculum.BATCH_TOKENS // (num_chars + 120 * num_questions))
    make = MAKE[task]
    return [make(rng, num_chars=num_chars, num_questions=num_questions) for _ in range(count)]
