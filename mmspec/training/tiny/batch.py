"""Samples to tensors: token ids, labels, weights and the places that guided heads must find."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
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
from mmspec.training.tiny.data import NOWHERE, Sample

IGNORED = -100
ROUND_TO = 32  # few different shapes: matrix libraries keep a compiled kernel for each
JUMP_WEIGHT, END_WEIGHT = 3.0, 2.0


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
    text = [NUM_SPECIALS + byte for byte in sample.prompt_text.encode()]
    return [BOS, USER, *image, *text, ASSISTANT]


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
    samples: Sequence[Sample], rng: Random, *, corrupted: float = 0.0, gaps: float = 0.0
) -> Batch:
    """Batch samples that all have a picture or all have none.

    A share `corrupted` of them gets some wrong characters in its own answer (the targets stay
    right), so that the model learns to recover from a mistake. A share `gaps` of prompts
    without a picture gets jumps in its position numbers, so that distances of long contexts are
    known from short ones.
    """
    has_image = samples[0].pixels is not None
    prompts = [prompt_ids(sample) for sample in samples]
    start = min(map(len, prompts)) - 1  # the assistant token predicts the first character
    start -= start % ROUND_TO
    seq = max(len(p) + len(s.answer) for p, s in zip(prompts, samples, strict=True))
    seq += -seq % ROUND_TO
    size = (len(samples), seq)
    token_ids = np.full(size, PAD)
    positions = np.tile(np.arange(seq), (len(samples), 1))
    targets, weights = np.full(size, IGNORED), np.zeros(size, np.float32)
    next_text, next_patch, this_patch = (np.full(size, NOWHERE) for _ in range(3))
    text_offset = 2 + NUM_IMAGE_TOKENS * has_image
    for row, (prompt, sample) in enumerate(zip(prompts, samples, strict=True)):
        answer = np.frombuffer(sample.answer.encode(), np.uint8).astype(int) + NUM_SPECIALS
        first, stop = len(prompt) - 1, len(prompt) + len(answer)
        seen = answer.copy()
        if rng.random() < corrupted:
            for _ in range(rng.randint(1, 1 + len(answer) // 25)):
                seen[rng.randrange(len(answer))] = NUM_SPECIALS + rng.randint(32, 126)
        token_ids[row, :stop] = [*prompt, *seen]
        targets[row, first:stop] = [*answer, EOS]
        weights[row, first:stop] = 1
        weights[row, stop - 1] = END_WEIGHT
        text, patch = np.array(sample.text_source), np.array(sample.patch_source)
        next_text[row, first:stop] = np.where(text == NOWHERE, NOWHERE, text + text_offset)
        next_patch[row, first:stop] = np.where(patch == NOWHERE, NOWHERE, patch + 2)
        this_patch[row, first + 1 : stop] = next_patch[row, first : stop - 1]
        for index in range(len(answer) + 1):
            jumps = _is_jump(sample.text_source, index, (1,)) or (
                max(sample.text_source) == NOWHERE and _is_jump(sample.patch_source, index, (0, 1))
            )
            if jumps:
                weights[row, first + index] = JUMP_WEIGHT
        if not has_image and rng.random() < gaps:
            for _ in range(rng.randint(1, 3)):
                widest = MAX_POSITIONS - 2 - positions[row, -1]
                gap = int(np.exp(rng.uniform(0, np.log(max(2, widest)))))
                positions[row, rng.randrange(text_offset, len(prompt)) :] += gap
    labels = [sample.labels for sample in samples if sample.labels is not None]
    tail = [torch.from_numpy(x[:, start:]) for x in (next_text, next_patch, this_patch)]
    return Batch(
        torch.from_numpy(token_ids),
        torch.from_numpy(positions),
        pixel_tensor(samples) if has_image else None,
        torch.from_numpy(np.stack([x.characters for x in labels])).long() if labels else None,
        torch.from_numpy(np.stack([x.shapes for x in labels])).long() if labels else None,
        start,
        torch.from_numpy(targets[:, start:]),
        torch.from_numpy(weights[:, start:]),
        *tail,
    )
