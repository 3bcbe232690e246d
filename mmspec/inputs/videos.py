"""Any video a user may hand over -> its frames as upright RGB PIL images."""

import importlib
import io
import os
from collections.abc import Iterator, Sequence
from types import ModuleType

import numpy as np
from PIL import Image
from torch import Tensor

from mmspec.errors import InputError, TooLargeError
from mmspec.inputs.images import (
    BinaryFile,
    ImageSource,
    as_array,
    open_encoded,
    open_image,
    read_open_file,
    upright_rgb,
)
from mmspec.inputs.limits import InputLimits, Spending
from mmspec.inputs.sources import describe, is_of_machine, read_source

VideoSource = (
    str | os.PathLike[str] | bytes | BinaryFile | np.ndarray | Tensor | Sequence[ImageSource]
)

# A playlist in place of a video would have FFmpeg open what it names: files and addresses.
_NOTHING_ELSE = {
    "format_whitelist": "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv",
    "protocol_whitelist": "none",
}
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv")


def open_video(
    source: VideoSource,
    *,
    limits: InputLimits | None = None,
    spending: Spending | None = None,
) -> list[Image.Image]:
    """All frames of a video, in order, as RGB images.

    `source`: a sequence of images (see `open_image`), an array or tensor (frames, height, width,
    channels) or (frames, channels, height, width), or an animated GIF, WebP or PNG as path, bytes,
    open file or URL. Other containers (mp4, ...) are decoded where the package `av` is installed.
    Its size is counted in `spending`, the request's own.
    Raises InputError: no frames, not a video, too many frames or pixels, and what `open_image`
    raises.
    """
    limits = limits or InputLimits()
    if isinstance(source, BinaryFile):
        source = read_open_file(source)
    if isinstance(source, str | os.PathLike | bytes):
        name = describe(source)
        if _has_video_suffix(source):
            _import_av(name)  # before a large file is read
        data = read_source(source, limits=limits, spending=spending)
        is_container = _has_video_suffix(source) or _is_container(data)
        frames = _with_av(data, name) if is_container else _with_pil(data, name, limits)
        return _collect(frames, name, limits, spending)
    if isinstance(source, Tensor):
        source = as_array(source)
    if isinstance(source, np.ndarray):
        if source.ndim != 4:
            raise InputError(
                f"got a video array of shape {source.shape}; expected (frames, height, width, "
                "channels)"
            )
        source = list(source)
    if not isinstance(source, list | tuple):
        raise InputError(
            f"got a video of type {type(source).__name__}; expected a list of images, an array "
            "(frames, height, width, channels), or an animated GIF or WebP file"
        )
    frames = (open_image(frame, limits=limits) for frame in source)
    return _collect(frames, f"the video of {len(source)} frames", limits, spending)


def is_one_video(videos: object) -> bool:
    """Of what can be iterated over: whether it is one video, and no list of them.

    A list of PIL images or of single-frame arrays is one video; a list of anything else (paths,
    bytes, lists, 4-D arrays) is a video each.
    """
    if isinstance(videos, str | os.PathLike | bytes | BinaryFile | np.ndarray | Tensor):
        return True
    return isinstance(videos, Sequence) and len(videos) > 0 and all(map(_is_frame, videos))


def _is_frame(item: object) -> bool:
    return isinstance(item, Image.Image) or (
        isinstance(item, np.ndarray | Tensor) and item.ndim < 4
    )


def _collect(
    frames: Iterator[Image.Image], name: str, limits: InputLimits, spending: Spending | None
) -> list[Image.Image]:
    kept: list[Image.Image] = []
    num_pixels = 0
    for frame in frames:
        num_pixels += frame.width * frame.height
        if len(kept) == limits.max_video_frames or num_pixels > limits.max_video_pixels:
            raise TooLargeError(
                f"{name} has more than {limits.max_video_frames} frames or "
                f"{limits.max_video_pixels} pixels; give fewer or smaller frames, or raise "
                "InputLimits.max_video_frames / max_video_pixels"
            )
        if spending is not None:
            spending.add_pixels(frame.width * frame.height)
        kept.append(frame)
    if not kept:
        raise InputError(f"{name} has no frames; expected at least one")
    return kept


def _with_pil(data: bytes, name: str, limits: InputLimits) -> Iterator[Image.Image]:
    image = open_encoded(data, name=name, limits=limits)
    try:
        num_frames = getattr(image, "n_frames", 1)
        for index in range(num_frames):
            image.seek(index)
            yield upright_rgb(image, name=name)
    except Exception as error:  # decoders raise nearly anything on broken data
        if isinstance(error, InputError) or is_of_machine(error):
            raise
        raise InputError(
            f"{name} is a truncated or damaged animation ({error}); copy or download the file again"
        ) from error


def _has_video_suffix(source: str | os.PathLike[str] | bytes) -> bool:
    if isinstance(source, bytes):
        return False
    return os.fspath(source).split("?")[0].lower().endswith(VIDEO_SUFFIXES)


def _is_container(data: bytes) -> bool:
    """mp4/mov, Matroska/WebM, AVI, MPEG by their first bytes."""
    is_avi = data[:4] == b"RIFF" and data[8:12] == b"AVI "
    is_mp4 = data[4:8] == b"ftyp" and data[8:12] not in (b"avif", b"avis", b"heic", b"mif1")
    return is_avi or is_mp4 or data[:4] in (b"\x1a\x45\xdf\xa3", b"\x00\x00\x01\xba")


def _import_av(name: str) -> ModuleType:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise InputError(
            f"{name} is a video container (mp4, mkv, ...), which mmspec does not decode by itself; "
            "extract frames and give them as a list of images, convert it to an animated GIF or "
            "WebP, or install the package 'av'"
        ) from error


def _with_av(data: bytes, name: str) -> Iterator[Image.Image]:
    av = _import_av(name)
    try:
        with av.open(io.BytesIO(data), options=_NOTHING_ELSE) as container:
            for frame in container.decode(video=0):
                yield frame.to_image()
    except (OSError, ValueError, IndexError) as error:  # av's own errors derive from these
        raise InputError(
            f"{name} is not a video that can be decoded ({error}); check the file"
        ) from error
