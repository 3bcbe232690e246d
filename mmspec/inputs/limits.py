"""What one request's media may cost before it is refused."""

from collections import defaultdict
from dataclasses import dataclass

from mmspec.errors import TooLargeError


@dataclass(frozen=True)
class InputLimits:
    """Bounds on images, videos and recordings, checked before the model sees any.

    `allow_http` lets image URLs be fetched, `allow_private_http` also from this machine, from
    private networks and through a proxy; `allow_files=False` refuses paths on this machine, which a
    server that takes messages from strangers wants.
    """

    max_image_pixels: int = 64_000_000  # width x height
    max_image_bytes: int = 64 * 2**20  # of the encoded file, a video's or recording's too
    max_video_frames: int = 2048
    max_video_pixels: int = 512_000_000  # of all frames together
    max_audio_seconds: float = 3600.0
    max_request_pixels: int = 1_024_000_000  # of a request's images and videos together
    max_request_bytes: int = 2**30  # of its encoded files together
    allow_http: bool = False
    allow_private_http: bool = False
    allow_files: bool = True
    http_timeout_s: float = 20.0  # for the whole download


class Spending:
    """What the media of one request have taken of its limits so far. Each of its methods raises
    TooLargeError where that is too much."""

    def __init__(self, limits: InputLimits) -> None:
        self._limits = limits
        self._spent: defaultdict[str, float] = defaultdict(float)  # by the limit's name

    def add_bytes(self, num_bytes: int) -> None:
        """Of an encoded file."""
        told = "images, videos and recordings have {:.0f} bytes or more"
        self._add("max_request_bytes", num_bytes, told)

    def add_pixels(self, num_pixels: int) -> None:
        """Of an image, or a frame, that is to be decoded."""
        self._add("max_request_pixels", num_pixels, "images and videos have {:.0f} pixels or more")

    def add_seconds(self, num_seconds: float) -> None:
        """Of a recording."""
        self._add("max_audio_seconds", num_seconds, "recordings are {:.0f} s long")

    def _add(self, limit: str, amount: float, told: str) -> None:
        self._spent[limit] += amount
        spent, most = self._spent[limit], getattr(self._limits, limit)
        if spent > most:
            raise TooLargeError(
                f"the request's {told.format(spent)} together, over the limit of {most:.15g}; send "
                f"fewer or smaller ones, or raise inputs.{limit}"
            )
