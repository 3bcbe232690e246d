"""Opening images: every source and mode gives upright RGB, every bad one a clear InputError."""

import base64
import gzip
import io
import os
import struct
import zlib
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmspec.errors import InputError, TooLargeError
from mmspec.inputs import InputLimits, open_image
from mmspec.inputs.images import ImageSource
from mmspec.inputs.media_shares import media_list

SHUT = io.BytesIO(b"no matter")
SHUT.close()
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def red(width: int = 6, height: int = 4) -> Image.Image:
    return Image.new("RGB", (width, height), RED)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def test_every_kind_of_source_gives_the_same_image(tmp_path: Path) -> None:
    data = encode(red())
    path = tmp_path / "red.png"
    path.write_bytes(data)
    coded = base64.b64encode(data).decode()
    sources: list[ImageSource] = [
        *(path, str(path), path.as_uri(), data, red(), np.asarray(red())),
        *(
            f"data:image/png;base64,{coded}",
            io.BytesIO(data),
            f"data:image/png,{quote(data)}",
            f"DATA:image/png;base64,{coded[:40]}\n{coded[40:]}",
        ),
    ]
    for source in sources:
        image = open_image(source)
        assert (image.mode, image.size, image.getpixel((1, 1))) == ("RGB", (6, 4), RED)


def test_an_open_file_is_read_from_its_beginning_each_time(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(encode(red()))
    with path.open("rb") as file:
        assert media_list("images", file) == [file]
        for _ in range(2):
            assert open_image(file).getpixel((1, 1)) == RED


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_common_formats_open(kind: str) -> None:
    image = open_image(encode(red(16, 8), kind))
    assert image.size == (16, 8)
    assert np.abs(np.asarray(image).astype(int) - RED).max() < 4


def test_the_exif_orientation_is_applied_and_the_users_image_left_alone() -> None:
    source = Image.new("RGB", (6, 4), RED)
    source.paste(BLUE, (0, 0, 1, 4))  # the left edge
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    data = encode(source, "PNG", exif=exif)
    given_image = Image.open(io.BytesIO(data))
    for image in (open_image(data), open_image(given_image)):
        assert image.size == (4, 6)
        assert image.getpixel((2, 0)) == BLUE  # the left edge is the top now
    assert given_image.size == (6, 4)


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (3, 2), (255, 0, 0, 0))
    half = Image.new("RGBA", (3, 2), (255, 0, 0, 128))
    palette = red().quantize(4)
    assert open_image(encode(clear)).getpixel((0, 0)) == WHITE
    assert open_image(half).getpixel((0, 0)) == (255, 127, 127)
    assert open_image(encode(palette)).getpixel((0, 0)) == RED
    assert open_image(encode(palette, transparency=0)).getpixel((0, 0)) == WHITE
    assert open_image(Image.new("LA", (3, 2), (9, 0))).getpixel((0, 0)) == WHITE


def test_deep_greys_are_scaled_not_clipped() -> None:
    ramp = np.array([[0, 0x8080, 0xFFFF]], dtype=np.uint16)
    expected = [[0, 128, 255]]
    for kind in ("PNG", "TIFF"):
        image = open_image(encode(Image.fromarray(ramp), kind))
        assert np.asarray(image)[:, :, 0].tolist() == expected
    assert np.asarray(open_image(Image.fromarray(ramp.astype(np.int32))))[0, 1, 2] == 128
    for bright in (255, 2**20):  # one of 8 bits already; one that is brighter than 16 can say
        deep = Image.fromarray(np.array([[0, bright]], dtype=np.int32))
        assert np.asarray(open_image(deep))[0, :, 0].tolist() == [0, 255]
    unit = Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32))
    assert np.asarray(open_image(unit))[:, :, 1].tolist() == expected


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX", "RGBa"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = open_image(Image.new(mode, (1, 1)))
    assert (image.mode, image.size) == ("RGB", (1, 1))


def test_arrays_in_either_layout_and_type_agree() -> None:
    array = np.asarray(red())
    same = [
        *(array.transpose(2, 0, 1), array.astype(np.float32) / 255),
        np.dstack([array, np.full((4, 6, 1), 255, np.uint8)]),
    ]
    for one in same:
        assert np.array_equal(np.asarray(open_image(one)), array)
    mask = np.eye(3, dtype=bool)
    assert np.asarray(open_image(mask))[:, :, 0].tolist() == (mask * 255).tolist()
    assert open_image(mask[:, :, None]).size == (3, 3)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    data = encode(red(), "GIF", save_all=True, append_images=[Image.new("RGB", (6, 4), BLUE)])
    assert open_image(data).getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("no/such/picture.png", ["no such file", "no/such/picture.png", "check the path"]),
        ("~no-such-user/a.png", ["no such file", "~no-such-user/a.png", "check the path"]),
        (b"", ["0 bytes"]),
        (b"just some text, no image", ["not an image", "just som", "expected a JPEG"]),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ["not an image"]),
        (encode(red(64, 64), "JPEG")[:300], ["truncated", "download the file again"]),
        (encode(red(64, 64), "BMP")[:300], ["truncated"]),
        (png_header(2, 2)[:-30], ["truncated"]),
        (png_header(8001, 8000), ["8001x8000", "64000000", "max_image_pixels"]),
        (png_header(60000, 60000), ["pixels", "shrink"]),
        (Image.new("RGB", (0, 5)), ["0x5", "at least 1x1"]),
        (Image.new("F", (2, 2), float("nan")), ["not finite"]),
        (np.zeros((0, 4, 3), np.uint8), ["(0, 4, 3)", "at least 1x1"]),
        (np.zeros((2, 2, 5), np.uint8), ["(2, 2, 5)", "(height, width, 1|3|4)"]),
        (np.zeros((2, 2, 3), np.int64), ["int64", "uint8"]),
        (np.full((2, 2, 3), 7.0), ["outside [0, 1]"]),
        (np.full((2, 2, 3), np.nan), ["outside [0, 1]"]),
        ("data:image/png;base64,@@@", ["base64", "b64encode"]),
        ("data:image/png", ["data URL", "data:image/png;base64,..."]),
        ("http://127.0.0.1:9/a.png", ["inputs.allow_http=true", "download"]),
        ("ftp://host/a.png", ["ftp://host/a.png", "kind"]),
        ("iVBORw0KGgo" * 2000, ["data: URL"]),
        ("a\0b.png", ["a\\x00b.png"]),
        (42, ["int", "a path, bytes, a URL, a PIL image, an open"]),
        ("", ["empty string", "leave it out"]),
        ("iVBORw0KGgo/" * 30, ["no such file", "data: URL"]),
        ("/9j/4AAQSkZJRgABAQ", ["no such file", "data: URL"]),
        (io.StringIO("text"), ["reads str", 'open(path, "rb")']),
        (SHUT, ["closed file", "open for reading"]),
        (gzip.open(io.BytesIO(gzip.compress(b"cut off")[:-9])), ["end-of-stream", "open for"]),
        (None, ["NoneType"]),
    ],
)
def test_a_bad_image_is_a_clear_error(source: ImageSource, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        open_image(source)
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 400


def test_what_the_system_says_of_a_path_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions of Python 3.14's Path have no other answer than yes and no."""
    for name in ("exists", "is_dir", "is_file"):
        monkeypatch.setattr(Path, name, getattr(os.path, name.replace("_", "")))
    with pytest.raises(
        InputError, match=r"cannot read 'x.*: File name too long; expected the path"
    ):
        open_image("x" * 300)


def test_folders_pipes_and_closed_doors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder"):
        open_image(tmp_path)
    with pytest.raises(InputError, match="not a regular file"):
        open_image("/dev/zero")
    path = tmp_path / "red.png"
    path.write_bytes(encode(red()))
    with pytest.raises(InputError, match="allow_files"):
        open_image(path, limits=InputLimits(allow_files=False))
    with pytest.raises(InputError, match="max_image_bytes"):
        open_image(path, limits=InputLimits(max_image_bytes=50))
    with pytest.raises(InputError, match="max_image_bytes"):
        open_image(path.read_bytes(), limits=InputLimits(max_image_bytes=50))
    closed = Image.open(path)
    closed.close()
    with pytest.raises(InputError, match=r"the PIL image.* or was closed"):
        open_image(closed)


def test_a_file_object_that_the_system_does_not_read_is_refused() -> None:
    """Where Python itself holds nothing against it: the system's error has a number."""
    reading, writing = os.pipe()
    with (
        os.fdopen(reading, "rb", buffering=0) as pipe,
        os.fdopen(writing, "rb", buffering=0) as written,
    ):
        for file in (pipe, written):
            with pytest.raises(InputError, match="open for reading"):
                open_image(file)


def test_the_limits_can_be_moved_and_pillows_globals_stay() -> None:
    before = Image.MAX_IMAGE_PIXELS
    for source in (red(), encode(red()), np.asarray(red())):
        with pytest.raises(InputError, match="over the limit of 20"):
            open_image(source, limits=InputLimits(max_image_pixels=20))
    assert open_image(red(), limits=InputLimits(max_image_pixels=24)).size == (6, 4)
    assert before == Image.MAX_IMAGE_PIXELS


def icon(picture: Image.Image, bitmap_format: str) -> bytes:
    held = io.BytesIO()
    picture.save(held, "ICO", sizes=[picture.size], bitmap_format=bitmap_format)
    return held.getvalue()


def test_an_icon_is_judged_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    icons = [icon(Image.new("RGBA", (64, 32)), kind) for kind in ("png", "bmp")]
    for data in icons:
        assert open_image(data, limits=InputLimits(max_image_pixels=64 * 32)).size == (64, 32)
    monkeypatch.setattr(Image, "open", None)
    for data in icons:
        with pytest.raises(TooLargeError, match="64x32 = 2048 pixels"):
            open_image(data, limits=InputLimits(max_image_pixels=2047))


def test_an_icon_with_the_oldest_bitmap_header_has_its_own_size() -> None:
    pixels = struct.pack("<IHHHH", 12, 8, 2 * 4, 1, 24) + b"\x30\x20\x10" * 32 + bytes(16)
    entry = struct.pack("<HHHBBBBHHII", 0, 1, 1, 8, 4, 0, 0, 1, 24, len(pixels), 22)
    image = open_image(entry + pixels, limits=InputLimits(max_image_pixels=32))
    assert image.size == (8, 4) and image.getpixel((0, 0)) == (0x10, 0x20, 0x30)


@pytest.mark.parametrize("cut", [4, 5, 6, 20, 22, 30, 45])
def test_a_cut_icon_is_no_image(cut: int) -> None:
    with pytest.raises(InputError, match="image"):
        open_image(icon(Image.new("RGBA", (64, 32)), "png")[:cut])


def test_broken_exif_costs_the_orientation_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Image.Image) -> Image.Image:
        raise SyntaxError("not a TIFF header")

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", broken)
    assert open_image(red()).size == (6, 4)


@given(data=st.binary(max_size=200), cut=st.integers(0, 120), kind=st.sampled_from(["PNG", "GIF"]))
def test_damaged_bytes_never_raise_anything_else(data: bytes, cut: int, kind: str) -> None:
    try:
        open_image(encode(red(), kind)[:cut] + data)
    except InputError:
        pass
