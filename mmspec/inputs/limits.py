"""What one request's media may cost before it is refused."""

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
    """What the media of one request have taken of its limits so far."""

    def __init__(self, limits: InputLimits) -> None:
        self._limits = limits
        self._num_bytes = self._num_pixels = 0
        self._num_seconds = 0.0

    def add_bytes(self, num_bytes: int) -> None:
        """Of an encoded file. Raises TooLargeError."""
        self._num_bytes += num_bytes
        most = self._limits.max_request_bytes
        if self._num_bytes > most:
            raise TooLargeError(
                f"the request's images, videos and recordings have {self._num_bytes} bytes or more "
                f"together, over the limit of {most}; send fewer or smaller ones, or raise "
                "inputs.max_request_bytes"
            )

    def add_pixels(self, num_pixels: int) -> None:
        """Of an image, or a frame, that is to be decoded. Raises TooLargeError."""
        self._num_pixels += num_pixels
        most = self._limits.max_request_pixels
        if self._num_pixels > most:
            raise TooLargeError(
                f"the request's images and videos have {self._num_pixels} pixels or more together, "
                f"over the limit of {most}; send fewer or smaller ones, or raise "
                "inputs.max_request_pixels"
            )

    def add_seconds(self, num_seconds: float) -> None:
        """Of a recording. Raises TooLargeError."""
        self._num_seconds += num_seconds
        most = self._limits.max_audio_seconds
        if self._num_seconds > most:
            raise TooLargeError(
                f"the request's recordings are {self._num_seconds:.0f} s long together, over the "
                f"limit of {most:g} s; send fewer or shorter ones, or raise "
                "inputs.max_audio_seconds"
            )
