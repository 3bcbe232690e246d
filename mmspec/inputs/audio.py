"""Any recording a user may hand over -> samples of one channel at the rate that a model hears."""

import importlib
import io
import os
import wave
from collections.abc import Mapping
from types import ModuleType
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mmspec.errors import InputError, MissingExtraError, TooLargeError
from mmspec.inputs.images import BinaryFile, as_array, read_open_file
from mmspec.inputs.limits import InputLimits, Spending
from mmspec.inputs.resample import resample
from mmspec.inputs.sources import describe, read_source

Samples: TypeAlias = NDArray[np.float32]
AudioSource: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | BinaryFile
    | tuple[np.ndarray | Tensor, int]
    | Mapping[str, object]
)

_MOST_CHANNELS = 32  # an array's axis of more is time
_HIGHEST_RATE = 192_000  # samples a second: a header may claim any, and the resampler's table grows
_USUAL_RATE = 48_000  # above it a recording may be as much shorter: memory goes by its samples
_BLOCK_FRAMES = 2**18  # decoded at once: a small file may hold hours of silence
_FORM = (
    "expected a path, bytes, a URL, an open file, or samples with their rate: (array, 16000) or "
    '{"array": array, "sampling_rate": 16000}'
)


def open_audio(
    source: AudioSource,
    *,
    rate: int,
    limits: InputLimits | None = None,
    spending: Spending | None = None,
) -> Samples:
    """The recording as (samples,) float32 in [-1, 1], its channels' mean, `rate` samples a second.

    `source`: a path, bytes, an open file, a data: URL, an http(s) URL (if allowed), or samples with
    their rate: a pair (array, rate) or the mapping of Hugging Face datasets. Arrays are (samples,),
    or with channels on either axis; integers are scaled by their type's largest value. WAV files of
    whole numbers are read here, all others (FLAC, MP3, OGG, ...) by the package soundfile. Its size
    is counted in `spending`, the request's own.
    Raises InputError: nothing there, no audio, too long, not finite, a missing or impossible rate;
    MissingExtraError where soundfile is needed and not installed.
    """
    limits = limits or InputLimits()
    given = _samples_of(source)
    if given is not None:
        name, (samples, own_rate) = "the audio array", given
    else:
        if isinstance(source, BinaryFile):
            source = read_open_file(source)
        if not isinstance(source, str | os.PathLike | bytes):
            raise InputError(f"got audio of type {type(source).__name__}; {_FORM}")
        name = describe(source)
        data = read_source(source, limits=limits, spending=spending)
        samples, own_rate = _decoded(data, name, limits)
    _check_rate(own_rate, name)
    _check_length(max(samples.shape, default=0), own_rate, name, limits)
    if spending is not None:
        spending.add_seconds(max(samples.shape, default=0) / own_rate)
    return resample(_mono(samples, name), own_rate, rate)


def is_one_recording(audio: object) -> bool:
    """Of what can be iterated over: whether it is one recording, and no list of them. A pair of an
    array and a number is one."""
    one = str | os.PathLike | bytes | BinaryFile | np.ndarray | Tensor
    return isinstance(audio, one) or _is_pair(audio)


def _is_pair(source: object) -> bool:
    return (
        isinstance(source, tuple)
        and len(source) == 2
        and isinstance(source[0], np.ndarray | Tensor)
        and not isinstance(source[1], np.ndarray | Tensor | tuple)
    )


def _samples_of(source: object) -> tuple[np.ndarray, int] | None:
    """An array and its rate, where the source is one."""
    if isinstance(source, np.ndarray | Tensor):
        shape = tuple(source.shape)
        raise InputError(f"got an audio array of shape {shape} without its rate; {_FORM}")
    if isinstance(source, Mapping):
        source = (source.get("array"), source.get("sampling_rate"))
        if not isinstance(source[0], np.ndarray | Tensor):
            raise InputError(f"got an audio mapping without an array; {_FORM}")
    elif not _is_pair(source):
        return None
    samples, rate = cast(tuple[np.ndarray | Tensor, object], source)
    if not isinstance(rate, int | np.integer) or isinstance(rate, bool) or rate < 1:
        raise InputError(f"got an audio array with the rate {rate!r}; expected samples a second")
    return as_array(samples) if isinstance(samples, Tensor) else samples, int(rate)


def _check_rate(rate: int, name: str) -> None:
    if not 1 <= rate <= _HIGHEST_RATE:
        raise InputError(
            f"{name} has {rate} samples a second; expected 1 to {_HIGHEST_RATE}: convert it, to "
            "16000 say"
        )


def _check_length(frames: int, rate: int, name: str, limits: InputLimits) -> None:
    seconds = limits.max_audio_seconds * min(1.0, _USUAL_RATE / rate)
    if frames > seconds * rate:
        raise TooLargeError(
            f"{name} is {frames / rate:.0f} s long or longer, over the limit of {seconds:g} s at "
            f"{rate} samples a second; give a part of it, convert it to {_USUAL_RATE} or fewer, or "
            "raise inputs.max_audio_seconds"
        )


def _decoded(data: bytes, name: str, limits: InputLimits) -> tuple[np.ndarray, int]:
    """(samples, channels), or (samples,) of one; and their rate."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        try:
            with wave.open(io.BytesIO(data)) as file:
                width, channels = file.getsampwidth(), file.getnchannels()
                raw = file.readframes(file.getnframes())
                whole = len(raw) - len(raw) % (width * channels)  # of a file that is cut off
                return _integers(raw[:whole], width).reshape(-1, channels), file.getframerate()
        except (wave.Error, EOFError, ValueError, RuntimeError, KeyError):
            pass  # of another width or encoding (float, mu-law), or damaged: soundfile says which
    soundfile = _import_soundfile(name)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_rate(file.samplerate, name)
            return _mean_of_channels(file, name, limits), file.samplerate
    except (RuntimeError, ValueError, TypeError) as error:  # its own error is a RuntimeError
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{name} is not audio that can be read (it begins with {data[:8]!r}: {error}); "
            "expected a WAV, FLAC, OGG or MP3 file"
        ) from error


def _mean_of_channels(file: Any, name: str, limits: InputLimits) -> Samples:
    """(samples,) of an open soundfile.SoundFile, never more of it than `limits` allow."""
    parts: list[Samples] = []
    num_frames = 0
    while (block := file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)).size:
        num_frames += len(block)
        _check_length(num_frames, file.samplerate, name, limits)
        parts.append(block.mean(axis=1))
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _integers(raw: bytes, width: int) -> np.ndarray:
    """Little-endian samples of `width` bytes as an integer array of their scale."""
    if width == 1:  # unsigned, as WAV has it
        return np.frombuffer(raw, np.uint8).astype(np.int8) ^ np.int8(-128)
    if width == 3:
        parts = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(parts), 4), np.uint8)
        wide[:, 1:] = parts
        return wide.view("<i4").reshape(-1)
    return np.frombuffer(raw, {2: "<i2", 4: "<i4"}[width])


def _mono(samples: np.ndarray, name: str) -> Samples:
    if samples.ndim not in (1, 2) or not samples.size:
        raise InputError(
            f"{name} has the shape {samples.shape}; expected (samples,), (samples, channels) or "
            "(channels, samples), with a sample at least"
        )
    if np.issubdtype(samples.dtype, np.integer):
        scaled = samples / -float(np.iinfo(samples.dtype).min or -np.iinfo(samples.dtype).max)
    elif np.issubdtype(samples.dtype, np.floating):
        scaled = samples
    else:
        raise InputError(f"{name} is of dtype {samples.dtype}; expected integers or floats")
    if scaled.ndim == 2:
        channels = int(np.argmin(scaled.shape))
        if scaled.shape[channels] > _MOST_CHANNELS:
            raise InputError(
                f"{name} has the shape {samples.shape}; expected an axis of at most "
                f"{_MOST_CHANNELS} channels"
            )
        scaled = scaled.mean(axis=channels)
    mono = np.ascontiguousarray(scaled, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise InputError(f"{name} has samples that are not finite; expected numbers in [-1, 1]")
    return mono


def _import_soundfile(name: str) -> ModuleType:
    try:
        return importlib.import_module("soundfile")
    except ImportError as error:
        raise MissingExtraError(
            f"{name} is no WAV file of whole numbers, and others need the package soundfile, which "
            "is not installed: pip install 'mmspec[audio]', or convert it to 16-bit WAV"
        ) from error
