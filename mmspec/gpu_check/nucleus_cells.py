"""The nucleus without a sort beside transformers' top-p: what is kept, and how long it takes."""

from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch
from transformers import TopPLogitsWarper

from mmspec.gpu_check.clock import Clock
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting

_TOP_P = 0.9
_BORDER = 1e-4  # of the probability, by which sums over a vocabulary may round


@dataclass(frozen=True)
class NucleusFound:
    """Of one number of rows."""

    rows: int
    most_off: float  # by how much the probabilities that the two keep of a row differ
    ms: dict[str, float]


def check(setting: Setting, recorder: Recorder) -> None:
    """For a plain step and for trees, with logits as a model in 16 bits gives them."""
    vocab, counts = (60, (2,)) if setting.is_small else (128_256, (1, 8, 64))
    nucleus = import_module("mmspec.nucleus_kernels").nucleus
    theirs = TopPLogitsWarper(_TOP_P)
    clock = Clock(setting.device)
    found: list[NucleusFound] = []
    for rows in counts:
        generator = torch.Generator(setting.device).manual_seed(rows)
        scores = 3 * torch.randn(rows, vocab, generator=generator, device=setting.device)
        scores = scores.bfloat16().float()
        nothing = torch.empty(rows, 0, dtype=torch.long, device=setting.device)
        pair = [nucleus(scores, _TOP_P), theirs(nothing, scores.clone())]
        sums = [torch.where(kept > -torch.inf, scores.softmax(-1), 0).sum(-1) for kept in pair]
        off = float((sums[0] - sums[1]).abs().max())
        works = {
            "mmspec": partial(nucleus, scores, _TOP_P),
            "transformers": partial(theirs, nothing, scores),
        }
        times = {} if setting.is_small else clock.medians_ms(works)
        found.append(NucleusFound(rows, off, times))
        recorder.found("nucleus", found)
        what = f"top-p of {rows} rows: kept probabilities are {off:.1e} apart"
        recorder.check(off <= _BORDER, what)
