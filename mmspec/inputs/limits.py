"""What one request's media may cost before it is refused."""

from dataclasses import dataclass


@dataclass(frozen=True)
class InputLimits:
    """Bounds on images, videos and recordings, checked before the model sees any.

    `allow_http` lets image URLs be fetched; `allow_files=False` refuses paths on this machine,
    which a server that takes messages from strangers wants.
    """

    max_image_pixels: int = 64_000_000  # width x height
    max_image_bytes: int = 64 * 2**20  # of the encoded file, a video's or recording's too
    max_video_frames: int = 2048
    max_video_pixels: int = 512_000_000  # of all frames together
    max_audio_seconds: float = 3600.0
    allow_http: bool = False
    allow_files: bool = True
    http_timeout_s: float = 20.0  # for the whole download
