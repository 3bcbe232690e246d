"""Where media bytes come from: a path, bytes, a data: URL or, if allowed, an http(s) URL."""

import base64
import binascii
import errno
import os
import urllib.parse
import urllib.request
from contextlib import suppress
from functools import partial
from pathlib import Path

from mmspec.errors import InputError, TooLargeError
from mmspec.inputs.download import download
from mmspec.inputs.limits import InputLimits, Spending
from mmspec.kernels import says_used_up

_BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk0")  # how PNG, JPEG, GIF, WebP, BMP begin
_MISTAKES = (  # what the system says of a wrong path or file object; of a disk it says other things
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
    errno.EBADF,  # closed, or open for writing alone
    errno.ESPIPE,  # a pipe
)


def read_source(
    source: str | os.PathLike[str] | bytes,
    *,
    limits: InputLimits,
    spending: Spending | None = None,
) -> bytes:
    """The encoded bytes of an image or video.

    `source`: bytes, a path, or a `data:`, `file:`, `http:` or `https:` URL. They are counted in
    `spending`, the request's own.
    Raises InputError: no such file, a folder, an empty file, more than `limits.max_image_bytes`,
    a malformed data URL, a URL that is not allowed or cannot be fetched. A disk's failure is the
    OSError that it is.
    """
    if isinstance(source, bytes):
        data = source
    elif isinstance(source, str) and source[:5].lower() == "data:":
        data = _read_data_url(source, limits)
    elif isinstance(source, str) and source[:8].lower().startswith(("http://", "https://")):
        data = _fetch(source, limits)
    else:
        data = _read_file(source, limits)
    if not data:
        raise InputError(f"{describe(source)} is empty (0 bytes); expected a file's bytes")
    _check_size(len(data), describe(source), limits)
    if spending is not None:
        spending.add_bytes(len(data))
    return data


def describe(source: object) -> str:
    """A short name of a media source for error messages."""
    if isinstance(source, bytes):
        return f"data of {len(source)} bytes"
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        return repr(text if len(text) <= 160 else f"{text[:60]}...{text[-60:]}")
    return f"a {type(source).__name__}"


def is_of_machine(error: Exception) -> bool:
    """Whether what reading, decoding or processing a source raised says nothing of the source: no
    memory is left, or a disk has failed. A decoder's own OSError has no number."""
    if isinstance(error, OSError):
        return error.errno is not None and error.errno not in _MISTAKES
    return says_used_up(error)


def _check_size(num_bytes: int, name: str, limits: InputLimits) -> None:
    if num_bytes > limits.max_image_bytes:
        raise TooLargeError(
            f"{name} has {num_bytes} bytes or more, over the limit of {limits.max_image_bytes}; "
            "shrink it, or raise inputs.max_image_bytes"
        )


def _read_file(source: str | os.PathLike[str], limits: InputLimits) -> bytes:
    name = describe(source)
    text = os.fspath(source)
    if text[:5].lower() == "file:":
        text = urllib.request.url2pathname(urllib.parse.urlparse(text).path)
    elif "://" in text[:12]:
        raise InputError(
            f"{name} is a URL of a kind that mmspec does not read; expected a path, or a data:, "
            "file:, http: or https: URL"
        )
    if not limits.allow_files:
        raise InputError(
            f"{name} is a path on this machine, and files are not allowed here; send the image as "
            "a data: URL, or allow them: --set inputs.allow_files=true"
        )
    path = Path(os.path.expanduser(text))  # as it is where there is no such user
    if not text:
        raise InputError("got an empty string for an image; expected a path, or leave it out")
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()  # tells what else is wrong: Path's questions do so up to Python 3.13
        if path.is_dir():
            raise InputError(f"{name} is a folder; expected an image file, give one file of it")
        if not path.exists():
            is_data = len(text) >= 256 or text.startswith(_BASE64)
            hint = "; for base64 a data: URL, 'data:image/png;base64,...'" if is_data else ""
            raise InputError(f"no such file: {name} (looked in {Path.cwd()}); check the path{hint}")
        if not path.is_file():
            raise InputError(f"{name} is not a regular file; expected an image file")
        _check_size(path.stat().st_size, name, limits)
        return path.read_bytes()
    except (OSError, ValueError) as error:  # InputError is a ValueError too
        if isinstance(error, InputError) or is_of_machine(error):
            raise
        raise InputError(
            f"cannot read {name}: {getattr(error, 'strerror', None) or error}; expected the path "
            "of a readable image file (for base64 a data: URL, 'data:image/png;base64,...')"
        ) from error


def _read_data_url(url: str, limits: InputLimits) -> bytes:
    header, comma, payload = url.partition(",")
    if not comma:
        raise InputError(f"{describe(url)} is no data URL; expected 'data:image/png;base64,...'")
    if not header.lower().endswith(";base64"):
        return urllib.parse.unquote_to_bytes(payload)
    _check_size(len(payload) * 3 // 4 - 2, "the image of the data URL", limits)
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(
            f"the data URL {describe(url)} is not valid base64 ({error}); encode the file's bytes "
            "with base64.b64encode"
        ) from error


def _fetch(url: str, limits: InputLimits) -> bytes:
    name = describe(url)
    if not limits.allow_http:
        raise InputError(
            f"{name} is an http image, which mmspec does not fetch unless asked; download it and "
            "give the path, or allow it: --set inputs.allow_http=true (as overrides= of "
            "mmspec.load)"
        )
    return download(
        url, name=name, limits=limits, check_size=partial(_check_size, name=name, limits=limits)
    )
