"""The noise that chooses tokens: the same bits on the device as on the CPU, and nearly the same
values (two logarithms differ in a last bit here and there)."""

from dataclasses import dataclass
from importlib import import_module

import torch

from mmspec import noise
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting

_MOST_DIFFERING = 1e-6  # share of float32 values; the aim is 1e-7, of which few draws can tell
_MOST_ERROR = 2.4e-7  # of a value, or of 1 where it is smaller: two units in the last place
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


def check(setting: Setting, recorder: Recorder) -> None:
    if not setting.is_cuda and not setting.has_kernels:
        recorder.missing("noise on a GPU: this is the CPU, compared with itself")
    found = _compared(setting)
    recorder.found("noise", found)
    recorder.check(found.are_bits_equal, "noise: other random bits than on the CPU")
    recorder.check(
        found.share <= _MOST_DIFFERING,
        f"noise: {found.share:.1e} of its values differ from the CPU's",
    )
    recorder.check(
        found.most_error <= _MOST_ERROR,
        f"noise: a value is off from the CPU's by {found.most_error:.1e}",
    )


def _compared(setting: Setting) -> NoiseFound:
    """Over many positions of several seeds, one of them larger than 32 bits. By the kernels where
    they run: decoding would do without kernels that fail, which is to be seen here."""
    places, vocab = (3, 2500) if setting.is_small else (200, _VOCAB)
    maker = import_module("mmspec.noise_kernels") if setting.has_kernels else noise
    differing = values = 0
    most = 0.0
    are_equal = True
    for index in range(places):
        seed, position = (7, 2**40 + 5, 2**63 + 11)[index % 3], 37 * index
        place = noise.Place(seed, 0, position)
        own = maker.gumbel_at([place], vocab, device=setting.device)[0].cpu()
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
