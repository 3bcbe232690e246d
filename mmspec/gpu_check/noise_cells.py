"""The noise that chooses tokens: the same bits on the device as on the CPU, and nearly the same
values (two logarithms differ in a last bit here and there)."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from mmspec import noise
from mmspec.gpu_check.setting import Setting

MOST_DIFFERING = 1e-6  # share of float32 values; the aim is 1e-7, of which few draws can tell
MOST_ERROR = 2.4e-7  # of a value, or of 1 where it is smaller: two units in the last place
_VOCAB = 128_256


@dataclass(frozen=True)
class NoiseFound:
    """The device's noise beside the CPU's."""

    values: int
    are_bits_equal: bool
    differing: int
    most_error: float

    @property
    def share(self) -> float:
        return self.differing / self.values


def compare(setting: Setting) -> NoiseFound:
    """Over many positions of several seeds, one of them larger than 32 bits."""
    places, vocab = (3, 2500) if setting.is_small else (200, _VOCAB)
    gumbel = _maker(setting, vocab)
    differing = values = 0
    most = 0.0
    are_equal = True
    for index in range(places):
        seed, position = (7, 2**40 + 5, 2**63 + 11)[index % 3], 37 * index
        own = gumbel(seed, position).cpu()
        expected = noise.gumbel(seed, position, vocab)
        errors = (own.double() - expected.double()).abs() / expected.abs().clamp(min=1)
        differing += int((own != expected).sum())
        most = max(most, float(errors.max()))
        values += vocab
        key = (seed & 0xFFFFFFFF, seed >> 32)
        blocks = torch.arange(4096)
        words = noise.philox((blocks, position, 0, 0), key)
        moved = noise.philox((blocks.to(setting.device), position, 0, 0), key)
        are_equal &= all(torch.equal(a, b.cpu()) for a, b in zip(words, moved, strict=True))
    return NoiseFound(values, are_equal, differing, most)


def is_interpreted() -> bool:
    """Whether Triton's kernels run on this CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None


def _maker(setting: Setting, vocab: int) -> Callable[[int, int], Tensor]:
    """Makes (seed, position) -> (vocab,) noise by the kernels, on a CPU where they can be
    interpreted: decoding would do without kernels that fail, which is to be seen here."""
    name = "mmspec.noise_kernels"
    if (setting.is_cuda and find_spec("triton")) or is_interpreted():
        kernels, place = import_module(name), noise.Place
        return lambda seed, position: kernels.gumbel_at(
            [place(seed, 0, position)], vocab, device=setting.device
        )[0]
    return lambda seed, position: noise.gumbel(seed, position, vocab, device=setting.device)
