"""Any image a user may hand over -> one upright RGB PIL image."""

import io
import logging
import os
from struct import error as StructError
from struct import iter_unpack, unpack
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mmspec.errors import InputError, TooLargeError
from mmspec.inputs.limits import InputLimits, Spending
from mmspec.inputs.sources import describe, is_of_machine, read_source


@runtime_checkable
class BinaryFile(Protocol):
    """An open file: what `open(path, "rb")`, io.BytesIO and the uploads of web frameworks are."""

    def read(self, size: int = ..., /) -> bytes: ...
    def seek(self, offset: int, /) -> int: ...


ImageSource = str | os.PathLike[str] | bytes | BinaryFile | Image.Image | np.ndarray | Tensor

logger = logging.getLogger(__name__)

# Left out on purpose: EPS and PostScript (Pillow would start an interpreter), WMF, FITS and such.
_FORMATS = "JPEG PNG WEBP GIF BMP DIB TIFF MPO PPM ICO JPEG2000 TGA AVIF HEIF QOI PCX".split()
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


def open_image(
    source: ImageSource,
    *,
    limits: InputLimits | None = None,
    spending: Spending | None = None,
) -> Image.Image:
    """Opens an image and makes it upright RGB (the EXIF orientation applied, transparency over
    white, 16-bit scaled to 8). Of an animation the first frame. The source is left as it was.

    `source`: a path, the bytes of an image file, a file that is open for reading bytes (read from
    its beginning), a data: URL, an http(s) URL (if allowed), a PIL image, or an array or tensor
    (height, width), (height, width, 1|3|4) or (1|3|4, height, width) of uint8, bool, or floats in
    [0, 1]. Its size is counted in `spending`, the request's own.
    Raises InputError: nothing there, not an image, truncated, too large, of zero size.
    """
    limits = limits or InputLimits()
    if isinstance(source, Tensor):
        source = as_array(source)
    if isinstance(source, np.ndarray):
        return _from_array(source, limits, spending)
    if isinstance(source, Image.Image):
        check_pixels(source.size, name="the PIL image", limits=limits, spending=spending)
        try:
            source.load()
        except Exception as error:  # as in `upright_rgb`
            if is_of_machine(error):
                raise
            raise InputError(
                f"the PIL image cannot be decoded ({type(error).__name__}: {error}): its file is "
                "damaged, or was closed; give its path, or call its load() while it is open"
            ) from error
        return upright_rgb(source, name="the PIL image")
    if isinstance(source, BinaryFile):
        source = read_open_file(source)
    if isinstance(source, str | os.PathLike | bytes):
        name = describe(source)
        data = read_source(source, limits=limits, spending=spending)
        image = open_encoded(data, name=name, limits=limits, spending=spending)
        return upright_rgb(image, name=name)
    raise InputError(
        f"got an image of type {type(source).__name__}; expected a path, bytes, a URL, a PIL "
        "image, an open file, a numpy array or a torch tensor, or a list of several"
    )


def is_one_image(images: object) -> bool:
    """Of what can be iterated over: whether it is one image, and no list of them."""
    one = str | os.PathLike | bytes | Image.Image | np.ndarray | Tensor | BinaryFile
    return isinstance(images, one)


def as_array(tensor: Tensor) -> np.ndarray:
    """Its values in memory that numpy can read."""
    held = tensor.detach().cpu()
    return (held.float() if held.is_floating_point() else held).numpy()


def read_open_file(file: BinaryFile) -> bytes:
    """All of its bytes. Raises InputError for one that cannot be read, or reads text."""
    try:
        file.seek(0)  # the same file may have been read before, by an earlier turn
        data = file.read()
    except Exception as error:  # a file of one's own, or of gzip, may raise anything
        if is_of_machine(error):
            raise
        raise InputError(
            f"cannot read the file object {file!r:.80}: {error}; expected one that is open for "
            "reading, or its bytes"
        ) from error
    if not isinstance(data, bytes):
        raise InputError(
            f"got a file object that reads {type(data).__name__}; expected one that is open for "
            'reading bytes: open(path, "rb")'
        )
    return data


def open_encoded(
    data: bytes, *, name: str, limits: InputLimits, spending: Spending | None = None
) -> Image.Image:
    """A PIL image of which only the header has been read, its size within the limits.

    Raises InputError: not an image, too many pixels, zero size.
    """
    for size in _icon_sizes(data):  # Pillow decodes an icon as soon as it is opened
        check_pixels(size, name=name, limits=limits)
    Image.init()
    formats = [one for one in _FORMATS if one in Image.OPEN]
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise TooLargeError(
            f"{name} is over Pillow's own limit on pixels ({error}); shrink the image"
        ) from error
    except Exception as error:  # broken headers raise nearly anything
        if is_of_machine(error):
            raise
        if data.startswith(_SIGNATURES):
            raise _damaged(name, error) from error
        raise InputError(
            f"{name} is not an image that can be read (it begins with {data[:8]!r}); expected a "
            f"JPEG, PNG, WebP, GIF, BMP or TIFF file (PDF pages: render them to images first)"
        ) from error
    check_pixels(image.size, name=name, limits=limits, spending=spending)
    return image


def _icon_sizes(data: bytes) -> list[tuple[int, int]]:
    """(width, height) of the pictures in an ICO file, as their own headers have it; of other files
    none. What is cut off is left out."""
    if not data.startswith(b"\0\0\1\0"):
        return []
    num_pictures = int.from_bytes(data[4:6], "little")
    entries = data[6 : 6 + 16 * min(num_pictures, (len(data) - 6) // 16)]
    heads = [data[offset : offset + 24] for (offset,) in iter_unpack("<12xI", entries)]
    return [_icon_size(head) for head in heads if len(head) == 24]


def _icon_size(head: bytes) -> tuple[int, int]:
    if head.startswith(b"\x89PNG"):
        width, height = unpack(">16xII", head)
        return width, height
    is_of_os2 = head.startswith(b"\x0c\0\0\0")  # the length of its header, whose sizes are shorter
    width, height = unpack("<4xHH16x" if is_of_os2 else "<4xii12x", head)
    return abs(width), abs(height) // 2  # a bitmap's mask lies above it


def check_pixels(
    size: tuple[int, int], *, name: str, limits: InputLimits, spending: Spending | None = None
) -> None:
    """Raises InputError for an image of zero size, TooLargeError for one of more pixels than the
    limit, or than are left to its request. `size` is (width, height)."""
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"{name} is {width}x{height} pixels; expected at least 1x1")
    if width * height > limits.max_image_pixels:
        raise TooLargeError(
            f"{name} is {width}x{height} = {width * height} pixels, over the limit of "
            f"{limits.max_image_pixels}; shrink it, or raise inputs.max_image_pixels"
        )
    if spending is not None:
        spending.add_pixels(width * height)


def upright_rgb(image: Image.Image, *, name: str) -> Image.Image:
    """Decodes the image's current frame; the EXIF orientation applied; mode RGB.

    Raises InputError: truncated or broken pixel data, a mode that has no RGB form.
    """
    try:
        image.load()
    except Exception as error:  # decoders raise nearly anything on broken data
        if is_of_machine(error):
            raise
        raise _damaged(name, error) from error
    try:
        image = ImageOps.exif_transpose(image)
    except (OSError, ValueError, TypeError, LookupError, SyntaxError, StructError) as error:
        logger.warning("%s has unreadable EXIF data (%s); its orientation is ignored", name, error)
    try:
        return _to_rgb(image)
    except ValueError as error:
        raise InputError(
            f"{name} has mode {image.mode}, which cannot be made RGB ({error}); convert it first"
        ) from error


def _damaged(name: str, error: Exception) -> InputError:
    # Pillow's own words name a buffer of ours.
    why = "no known header" if isinstance(error, UnidentifiedImageError) else error
    return InputError(
        f"{name} is a truncated or damaged image ({why}); copy or download the file again"
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16- and 32-bit greys: PIL would clip
        grey = np.asarray(image).astype(np.float64)
        peak = float(grey.max())
        if not np.isfinite(grey).all():
            raise ValueError("it has values that are not finite")
        scale = 255.0 if image.mode == "F" and peak <= 1 else 1.0
        if image.mode.startswith("I;16") or peak > 255:
            scale = 255 / 65535
        return Image.fromarray(np.clip(grey * scale + 0.5, 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _from_array(array: np.ndarray, limits: InputLimits, spending: Spending | None) -> Image.Image:
    name = f"the array of shape {array.shape} and dtype {array.dtype}"
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InputError(
            f"{name} is no image; expected (height, width), (height, width, 1|3|4) or "
            "(1|3|4, height, width)" + ("; several are list(array)" if array.ndim == 4 else "")
        )
    height, width = array.shape[:2]
    check_pixels((width, height), name=name, limits=limits, spending=spending)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise InputError(f"{name} has values outside [0, 1]; scale them, or convert to uint8")
        array = (array * 255 + 0.5).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise InputError(f"{name}: expected uint8, bool, or floats in [0, 1]; convert it")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)))
