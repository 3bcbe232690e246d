"""What the package soundfile itself makes of files, where it is installed."""

import io
from pathlib import Path

import numpy as np
import pytest

from inputs.test_audio import RATE, tone
from mmspec.errors import InputError
from mmspec.inputs import InputLimits, open_audio

soundfile = pytest.importorskip("soundfile", reason="needs the extra 'audio'")
_FORMATS = [
    ("WAV", "PCM_16", 1e-3),
    ("WAV", "PCM_24", 1e-3),
    ("WAV", "FLOAT", 1e-3),
    ("WAV", "ULAW", 0.02),
    ("FLAC", "PCM_16", 1e-3),
    ("OGG", "VORBIS", 0.05),
    ("MP3", "MPEG_LAYER_III", 0.05),
]


def encoded(samples: np.ndarray, kind: str, subtype: str, rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "subtype", "error"), _FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_tone_comes_back(kind: str, subtype: str, error: float, channels: int) -> None:
    times = np.arange(16000) / 16000
    tones = [0.4 * np.sin(2 * np.pi * hertz * times) for hertz in (300, 700)][:channels]
    data = encoded(np.stack(tones, axis=1), kind, subtype, 16000)
    heard = open_audio(data, rate=16000)
    expected = np.mean(tones, axis=0)
    assert heard.dtype == np.float32 and abs(len(heard) - 16000) <= 2304  # MP3 pads
    if kind == "MP3":  # its delay is not the same everywhere: by its loudness
        assert abs(np.std(heard) - np.std(expected)) < error
    else:
        assert np.abs(heard[2000:14000] - expected[2000:14000]).max() < error


def test_it_is_resampled_and_bounded() -> None:
    data = encoded(np.zeros(44100), "FLAC", "PCM_16", 44100)
    assert len(open_audio(data, rate=16000)) == 16000
    with pytest.raises(InputError, match="max_audio_seconds"):
        open_audio(data, rate=16000, limits=InputLimits(max_audio_seconds=0.5))


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "WAV"])
def test_what_is_broken_is_told(kind: str, tmp_path: Path) -> None:
    subtype = {"FLAC": "PCM_16", "OGG": "VORBIS", "WAV": "FLOAT"}[kind]
    data = encoded(tone(), kind, subtype, RATE)
    for broken in (data[:20], data[:4] + b"\xff" * 40, b"fLaC" + bytes(60)):
        path = tmp_path / "a.flac"
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"a\.flac"):
            open_audio(path, rate=RATE)
