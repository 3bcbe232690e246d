"""What the media of one request may be together."""

import io
import wave

import numpy as np
import pytest
from PIL import Image

from mmspec.errors import InputError, TooLargeError
from mmspec.inputs import InputLimits, open_image
from mmspec.inputs.audio import open_audio
from mmspec.inputs.limits import Spending
from mmspec.inputs.videos import open_video


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_pixels_of_images_and_frames_add_up() -> None:
    limits = InputLimits(max_request_pixels=400)
    spending = Spending(limits)
    array = np.zeros((10, 10, 3), np.uint8)
    for source in (png(10, 10), Image.new("RGB", (10, 10)), array):
        open_image(source, limits=limits, spending=spending)
    with pytest.raises(TooLargeError, match=r"500 pixels .*inputs\.max_request_pixels"):
        open_video([array, array], limits=limits, spending=spending)
    open_image(png(20, 20), limits=limits, spending=Spending(limits))  # another request's own


def test_an_image_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = InputLimits(max_request_pixels=99)
    monkeypatch.setattr("mmspec.inputs.images.upright_rgb", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(TooLargeError):
        open_image(png(10, 10), limits=limits, spending=Spending(limits))


def test_bytes_and_seconds_add_up() -> None:
    data = png(4, 4)
    limits = InputLimits(max_request_bytes=len(data), max_audio_seconds=1.5)
    spending = Spending(limits)
    open_image(data, limits=limits, spending=spending)
    with pytest.raises(TooLargeError, match=r"inputs\.max_request_bytes"):
        open_image(data, limits=limits, spending=spending)
    with pytest.raises(TooLargeError, match=r"1099511627777 bytes .* limit of 1099511627776;"):
        Spending(InputLimits(max_request_bytes=2**40)).add_bytes(2**40 + 1)
    tone = (np.zeros(100, np.float32), 100)
    open_audio(tone, rate=100, limits=limits, spending=spending)
    with pytest.raises(TooLargeError, match=r"2 s long together.*inputs\.max_audio_seconds"):
        open_audio(tone, rate=100, limits=limits, spending=spending)


def test_one_too_large_is_the_same_kind_of_mistake() -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(100)
        out.writeframes(bytes(400))
    for opened in (
        lambda: open_image(png(9, 9), limits=InputLimits(max_image_pixels=80)),
        lambda: open_image(png(9, 9), limits=InputLimits(max_image_bytes=10)),
        lambda: open_video([png(9, 9)] * 2, limits=InputLimits(max_video_frames=1)),
        lambda: open_audio(file.getvalue(), rate=100, limits=InputLimits(max_audio_seconds=1)),
    ):
        with pytest.raises(TooLargeError) as caught:
            opened()
        assert isinstance(caught.value, InputError)
