"""Audio at one rate -> the same at another, by a windowed sinc (band-limited interpolation)."""

import math

import numpy as np
from numpy.typing import NDArray

_ZEROS = 24  # of the sinc on each side of its middle
_ROLLOFF = 0.95  # of the lower rate's band that passes
_BLOCK = 2**14  # samples at once, so that a long recording takes no multiple of its memory


def resample(samples: NDArray[np.float32], rate: int, to: int) -> NDArray[np.float32]:
    """`samples` (samples,) taken `rate` times a second, as if they had been taken `to` times.

    Frequencies that the lower rate cannot hold are filtered out. A Hann window over 24 zero
    crossings: a tone keeps its amplitude within a thousandth.
    Source: J. O. Smith, "Digital Audio Resampling Home Page" (CCRMA, 2002), polyphase form.
    """
    if rate == to or not samples.size:
        return samples
    common = math.gcd(rate, to)
    old, new = rate // common, to // common
    cutoff = min(old, new) / old * _ROLLOFF  # in cycles of the old rate, 1 being its half
    width = math.ceil(_ZEROS / cutoff)
    # Sample n lies at n * old / new: a whole number of old ones and one of `new` fractions.
    fractions = (np.arange(new) * old % new) / new
    place = np.arange(-width, width + 2)[None] - fractions[:, None]
    window = np.cos(np.pi / 2 * np.clip(place / width, -1, 1)) ** 2
    kernel = (cutoff * np.sinc(cutoff * place) * window).astype(np.float32)  # (new, taps)
    length = math.ceil(samples.size * new / old)
    padded = np.pad(samples, (width, width + 2))
    taps = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[1])
    found = np.empty(length, np.float32)
    for start in range(0, length, _BLOCK):
        places = np.arange(start, min(start + _BLOCK, length))
        own = taps[places * old // new], kernel[places % new]
        np.einsum("nt,nt->n", *own, out=found[start : start + _BLOCK])
    return found
