"""Recordings become samples of one channel at the model's rate, bounded in length."""

import base64
import io
import math
import sys
import types
import wave
from pathlib import Path

import numpy as np
import pytest

from mmspec.errors import InputError, MissingExtraError
from mmspec.inputs import AudioSource, InputLimits, build_conversation, open_audio
from mmspec.inputs.media_shares import media_list
from mmspec.inputs.resample import resample

RATE = 16_000


def tone(rate: int = RATE, *, hertz: float = 440.0, seconds: float = 0.1) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def wav(samples: np.ndarray, *, rate: int = RATE, width: int = 2) -> bytes:
    """`samples` (samples,) or (samples, channels) in [-1, 1] as a WAV file."""
    scaled = np.round(samples * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    if width == 1:
        scaled += 128
    raw = b"".join(int(s).to_bytes(width, "little", signed=width > 1) for s in scaled.reshape(-1))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw)
    return buffer.getvalue()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_a_wav_file_of_any_width_gives_its_samples(width: int) -> None:
    """Of one that is cut off within a sample, the whole ones."""
    data = wav(tone(), width=width)
    found = open_audio(data, rate=RATE)
    assert found.dtype == np.float32
    assert np.abs(found - tone()).max() < 2.0 ** (2 - 8 * width) + 1e-6
    assert np.array_equal(open_audio(data[:-1], rate=RATE), found[:-1])


def test_every_kind_of_source_gives_the_same_samples(tmp_path: Path) -> None:
    data = wav(tone())
    path = tmp_path / "question.wav"
    path.write_bytes(data)
    expected = open_audio(data, rate=RATE)
    whole = np.round(tone() * 32767).astype(np.int16)
    url = "data:audio/wav;base64," + base64.b64encode(data).decode()
    sources: list[AudioSource] = [path, str(path), path.as_uri(), url, io.BytesIO(data)]
    sources += [(whole, RATE), {"array": whole, "sampling_rate": RATE}]
    for source in sources:
        assert np.array_equal(open_audio(source, rate=RATE), expected), source


def test_whole_numbers_are_scaled_by_what_their_type_holds() -> None:
    for dtype, loudest, most in ((np.int16, -(2**15), -1.0), (np.uint8, 2**8 - 1, 1.0)):
        found = open_audio((np.array([0, loudest], dtype), RATE), rate=RATE)
        assert found.tolist() == [0.0, most]


@pytest.mark.parametrize("form", ["samples first", "channels first", "file"])
def test_channels_are_averaged(form: str) -> None:
    both = np.stack([tone(), -0.5 * tone()], axis=1)
    source: AudioSource = {
        "samples first": (both, RATE),
        "channels first": (both.T.astype(np.float32), RATE),
        "file": wav(both),
    }[form]
    assert np.abs(open_audio(source, rate=RATE) - 0.25 * tone()).max() < 1e-4


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 24_000, 44_100, 48_000, 96_001])
def test_a_tone_is_the_same_tone_at_another_rate(rate: int) -> None:
    """Within a thousandth, but for the ends, where there is silence outside."""
    found = resample(tone(rate, seconds=0.2).astype(np.float32), rate, RATE)
    assert len(found) == math.ceil(round(rate * 0.2) * RATE / rate)
    expected = tone(seconds=0.2)[: len(found)]
    middle = slice(200, -200)
    assert np.abs(found[: len(expected)] - expected)[middle].max() < 1e-3


def test_what_the_lower_rate_cannot_hold_is_filtered_out() -> None:
    """Picked every third time, 15 kHz would sound as 1 kHz."""
    high = tone(48_000, hertz=15_000, seconds=0.2).astype(np.float32)
    assert np.abs(high[::3]).max() > 0.4
    assert np.abs(resample(high, 48_000, RATE))[200:-200].max() < 1e-3


def test_a_long_recording_is_resampled_in_pieces_without_seams() -> None:
    rate = 32_000
    found = resample(tone(rate, seconds=2.5).astype(np.float32), rate, RATE)
    assert np.abs(found - tone(seconds=2.5))[200:-200].max() < 1e-3


def test_one_recording_and_many_are_told_apart() -> None:
    array = tone()
    assert len(media_list("audio", "a.wav")) == len(media_list("audio", (array, RATE))) == 1
    assert len(media_list("audio", {"array": array, "sampling_rate": RATE})) == 1
    assert len(media_list("audio", ["a.wav", (array, RATE)])) == 2
    assert media_list("audio", ()) == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (tone(), ["without its rate", "(array, 16000)"]),
        ((tone(), 0), ["the rate 0", "samples a second"]),
        ((tone(), "fast"), ["'fast'"]),
        ((tone(), 2**31 - 1), ["2147483647 samples a second", "192000"]),
        (wav(tone(), rate=2**31 - 1), ["2147483647 samples a second", "192000"]),
        (wav(tone())[:24] + b"\0" * 4 + wav(tone())[28:], ["0 samples a second"]),
        (({"array": [1.0], "sampling_rate": 8}), ["without an array"]),
        ((np.zeros((2, 3, 4)), RATE), ["(2, 3, 4)"]),
        ((np.zeros(0), RATE), ["a sample at least"]),
        ((np.zeros((40, 40)), RATE), ["at most 32 channels"]),
        ((np.array([0.0, np.nan]), RATE), ["not finite"]),
        ((np.array(["a"]), RATE), ["expected integers or floats"]),
        (7, ["type int", "a path"]),
        ("no/such.wav", ["no such file"]),
        (b"", ["empty"]),
    ],
)
def test_a_bad_recording_is_a_clear_error(source: AudioSource, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        open_audio(source, rate=RATE)
    for word in words:
        assert word in str(caught.value)


def test_a_long_recording_is_refused() -> None:
    with pytest.raises(InputError, match="over the limit of"):
        open_audio((tone(), RATE), rate=RATE, limits=InputLimits(max_audio_seconds=0.05))


def test_a_recording_of_more_samples_than_usual_may_be_as_much_shorter() -> None:
    """What it takes in memory goes by its samples, not by its seconds."""
    limits, rate = InputLimits(max_audio_seconds=4), 192_000
    samples = np.zeros(rate + 1, np.float32)
    assert open_audio((samples[:rate], rate), rate=RATE, limits=limits).shape == (RATE,)
    with pytest.raises(InputError, match="over the limit of 1 s at 192000 samples a second"):
        open_audio((samples, rate), rate=RATE, limits=limits)


def test_other_files_need_soundfile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)  # as where it is not installed
    whole = wav(tone())
    broken = whole[:16] + b"\0\0\0\x18" + whole[20:]  # a chunk that is longer than the file
    wide = whole[:34] + b"\x40\0" + whole[36:]  # 64 bits a sample
    for data in (b"fLaC" + b"\0" * 40, whole[:30], broken, wide):
        with pytest.raises(MissingExtraError, match=r"mmspec\[audio\]"):
            open_audio(data, rate=RATE)


class OpenedSound:
    """What stands in for soundfile.SoundFile: so many frames of silence, or what `file` begins."""

    def __init__(self, file: io.BytesIO) -> None:
        kind = file.read(4)
        if kind not in (b"fLaC", b"long"):
            raise RuntimeError("Format not recognised")
        self.samplerate = RATE
        self.num_left = 10**9 if kind == b"long" else None
        self.rest = tone()[:, None] * np.array([1.0, 0.5])
        self.num_read = 0

    def __enter__(self) -> "OpenedSound":
        return self

    def __exit__(self, *error: object) -> None:
        read.append(self.num_read)

    def read(self, frames: int, *, dtype: str, always_2d: bool) -> np.ndarray:
        assert dtype == "float32" and always_2d
        if self.num_left is None:
            found, self.rest = self.rest[:frames], self.rest[frames:]
        else:
            found = np.zeros((min(frames, self.num_left), 2))
            self.num_left -= len(found)
        self.num_read += len(found)
        return found.astype(np.float32)


read: list[int] = []  # frames that were decoded of each file


@pytest.fixture
def soundfile(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("soundfile")
    module.SoundFile = OpenedSound  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "soundfile", module)
    read.clear()


@pytest.mark.usefixtures("soundfile")
def test_other_files_are_read_by_soundfile() -> None:
    assert np.allclose(open_audio(b"fLaC....", rate=RATE), 0.75 * tone(), atol=1e-6)
    with pytest.raises(InputError, match="not audio that can be read"):
        open_audio(b"no audio", rate=RATE)


@pytest.mark.usefixtures("soundfile")
def test_a_small_file_of_many_hours_is_not_decoded_to_its_end() -> None:
    with pytest.raises(InputError, match="over the limit of 30 s"):
        open_audio(b"long....", rate=RATE, limits=InputLimits(max_audio_seconds=30))
    assert read[0] < 60 * RATE


@pytest.mark.parametrize(
    "part",
    [
        {"type": "audio", "path": "a.wav"},
        {"type": "audio", "audio": "a.wav"},
        {"type": "audio_url", "audio_url": {"url": "a.wav"}},
        {"type": "audio_url", "audio_url": "a.wav"},
    ],
)
def test_messages_name_recordings(part: dict[str, object]) -> None:
    conversation = build_conversation([{"role": "user", "content": [part]}])
    assert conversation.audio == ("a.wav",)
    assert conversation.messages[0]["content"] == [{"type": "audio"}]


def test_messages_hold_recordings_in_openais_form_and_as_arrays() -> None:
    data = wav(tone())
    encoded = base64.b64encode(data).decode()
    openai = {"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}}
    array = {"type": "audio", "audio": {"array": tone(), "sampling_rate": RATE}}
    conversation = build_conversation([{"role": "user", "content": [openai, array]}])
    for source in conversation.audio:
        assert np.abs(open_audio(source, rate=RATE) - tone()).max() < 1e-4


def test_recordings_given_beside_fill_the_gaps_in_order() -> None:
    gap = {"type": "audio"}
    conversation = build_conversation(
        [{"role": "user", "content": [gap, {"type": "text", "text": "and"}, gap]}],
        audio=["a.wav", "b.wav"],
    )
    assert conversation.audio == ("a.wav", "b.wav")
    plain = build_conversation("What is said?", audio="a.wav", images="a.png")
    kinds = [part["type"] for part in plain.messages[0]["content"]]  # type: ignore[attr-defined]
    assert kinds == ["image", "audio", "text"]
