"""Samples to tensors: token ids, labels, weights and the places that guided heads must find."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmspec.training.tiny.build import (
    ASSISTANT,
    BOS,
    EOS,
    IMAGE,
    MAX_POSITIONS,
    NUM_IMAGE_TOKENS,
    NUM_SPECIALS,
    PAD,
    USER,
)
from mmspec.training.tiny.sample import NOWHERE, FollowUp, Sample, nowhere

IGNORED = -100
ROUND_TO = 32  # few different shapes: matrix libraries keep a compiled kernel for each
JUMP_WEIGHT, END_WEIGHT = 3.0, 2.0
IMAGE_START = TEXT_START = 2  # after BOS and USER; a text without a picture begins there


@dataclass(frozen=True)
class Batch:
    """Samples of one task, padded on the right. The last five begin at position `start`."""

    token_ids: Tensor  # (batch, seq)
    positions: Tensor  # (batch, seq)
    pixel_values: Tensor | None  # (batch, 3, side, side)
    characters: Tensor | None  # (batch, lines, columns)
    shapes: Tensor | None  # (batch, grid, grid)
    start: int
    targets: Tensor  # (batch, seq - start), the next token or IGNORED
    weights: Tensor  # (batch, seq - start)
    next_text: Tensor  # (batch, seq - start), where the next token stands in the prompt
    next_patch: Tensor  # (batch, seq - start), where the image shows the next token
    this_patch: Tensor  # (batch, seq - start), where the image shows this token


def prompt_ids(sample: Sample) -> list[int]:
    """The token ids that the processor gives for the sample's messages."""
    image = [IMAGE] * NUM_IMAGE_TOKENS if sample.pixels is not None else []
    return [BOS, USER, *image, *_byte_ids(sample.prompt_text), ASSISTANT]


def _byte_ids(text: str) -> list[int]:
    return [NUM_SPECIALS + byte for byte in text.encode()]


def pixel_tensor(samples: Sequence[Sample]) -> Tensor:
    """The pictures as the image processor gives them, (batch, 3, side, side)."""
    pixels = np.stack([sample.pixels for sample in samples if sample.pixels is not None])
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def _is_jump(source: tuple[int, ...], index: int, steps: tuple[int, ...]) -> bool:
    here = source[index]
    if here == NOWHERE:
        return False
    return index == 0 or here - source[index - 1] not in steps


def collate(
    samples: Sequence[Sample],
    rng: Random,
    *,
    corrupted: float = 0.0,
    gaps: float = 0.0,
    context: int = MAX_POSITIONS,
) -> Batch:
    """Batch samples that all have a picture or all have none.

    A share `corrupted` of them gets some wrong characters in its own answer (the targets stay
    right), so that the model learns to recover from a mistake. A share `gaps` of prompts
    without a picture gets jumps in its position numbers, up to `context`, so that distances of long
    texts are known from short ones.
    """
    has_image = samples[0].pixels is not None
    rows = [_lay_out(sample, rng, corrupted) for sample in samples]
    start = min(row.first for row in rows)
    start -= start % ROUND_TO
    seq = max(len(row.token_ids) for row in rows)
    seq += -seq % ROUND_TO
    positions = np.tile(np.arange(seq), (len(rows), 1))
    for row, its_positions in zip(rows, positions, strict=True):
        if not has_image and rng.random() < gaps:
            for _ in range(rng.randint(1, 3)):
                widest = context - 2 - its_positions[-1]
                gap = int(np.exp(rng.uniform(0, np.log(max(2, widest)))))
                its_positions[rng.randrange(TEXT_START, row.first + 1) :] += gap
    labels = [sample.labels for sample in samples if sample.labels is not None]

    def column(name: str, padding: float) -> Tensor:
        values = [getattr(row, name) for row in rows]
        padded = [np.pad(x, (0, seq - len(x)), constant_values=padding) for x in values]
        return torch.from_numpy(np.stack(padded))

    return Batch(
        column("token_ids", PAD),
        torch.from_numpy(positions),
        pixel_tensor(samples) if has_image else None,
        torch.from_numpy(np.stack([x.characters for x in labels])).long() if labels else None,
        torch.from_numpy(np.stack([x.shapes for x in labels])).long() if labels else None,
        start,
        column("targets", IGNORED)[:, start:],
        column("weights", 0)[:, start:],
        column("next_text", NOWHERE)[:, start:],
        column("next_patch", NOWHERE)[:, start:],
        column("this_patch", NOWHERE)[:, start:],
    )


@dataclass(frozen=True)
class _Row:
    """One sample as tokens; all arrays but `first` are (seq,), as in Batch."""

    first: int  # the assistant token before the first answer
    token_ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    weights: NDArray[np.float32]
    next_text: NDArray[np.int64]
    next_patch: NDArray[np.int64]
    this_patch: NDArray[np.int64]


def _lay_out(sample: Sample, rng: Random, corrupted: float) -> _Row:
    """The sample's questions and answers in one row."""
    prompt = prompt_ids(sample)
    later = sum(3 + len(turn.question) + len(turn.answer) for turn in sample.follow_ups)
    seq = len(prompt) + len(sample.answer) + later
    token_ids, targets = np.full(seq, PAD), np.full(seq, IGNORED)
    weights = np.zeros(seq, np.float32)
    next_text, next_patch, this_patch = (np.full(seq, NOWHERE) for _ in range(3))
    text_start = len(prompt) - 1 - len(sample.prompt_text)
    is_corrupted = rng.random() < corrupted
    end = 0  # of what is written so far
    turns: list[Sample | FollowUp] = [sample, *sample.follow_ups]
    for turn in turns:
        if isinstance(turn, Sample):
            asked, question_start = prompt, text_start
            patch_source = turn.patch_source
        else:
            asked = [EOS, USER, *_byte_ids(turn.question), ASSISTANT]
            question_start = end + 2 - len(sample.prompt_text)
            patch_source = nowhere(turn.answer)
        answer = np.array(_byte_ids(turn.answer))
        first = end + len(asked) - 1
        stop = first + 1 + len(answer)
        seen = answer.copy()
        if is_corrupted:
            for _ in range(rng.randint(1, 1 + len(answer) // 25)):
                seen[rng.randrange(len(answer))] = NUM_SPECIALS + rng.randint(32, 126)
        token_ids[end:stop] = [*asked, *seen]
        targets[first:stop] = [*answer, EOS]
        weights[first:stop] = 1
        weights[stop - 1] = END_WEIGHT
        text, patch = np.array(turn.text_source), np.array(patch_source)
        place = text + np.where(text < len(sample.prompt_text), text_start, question_start)
        next_text[first:stop] = np.where(text == NOWHERE, NOWHERE, place)
        next_patch[first:stop] = np.where(patch == NOWHERE, NOWHERE, patch + IMAGE_START)
        this_patch[first + 1 : stop] = next_patch[first : stop - 1]
        has_text = max(turn.text_source) != NOWHERE
        source, steps = (turn.text_source, (1,)) if has_text else (patch_source, (0, 1))
        jumps = [index for index in range(len(source)) if _is_jump(source, index, steps)]
        weights[first:stop][jumps] = JUMP_WEIGHT
        end = stop
    return _Row(len(prompt) - 1, token_ids, targets, weights, next_text, next_patch, this_patch)
