"""ServerSettings: how a server meets its clients. What the engine does is the engine's own."""

from dataclasses import dataclass

from mmspec.errors import ConfigError


@dataclass(frozen=True)
class ServerSettings:
    """Raises ConfigError for a value that is none."""

    name: str | None = None  # of the model, as clients call it; None: what it was loaded from
    api_keys: tuple[str, ...] = ()  # none: whoever reaches the address may ask
    cors_origins: tuple[str, ...] = ()  # web pages that may ask; "*": all
    max_waiting: int = 64  # prompts that wait for a place; more are refused with 429
    max_connections: int = 512  # open at a time; more are told 429 and closed
    max_body_bytes: int = 64 * 2**20
    max_held_bytes: int = 2**30  # of all bodies that are read or prepared at a time
    max_held_pixels: int = 2_000_000_000  # of all requests that wait or are decoded
    receive_s: float = 60.0  # within which a request has been sent, its body too
    max_media: int = 32  # images and videos of a request: each may be large once it is opened
    max_samples: int = 16  # n, and prompts of one call
    max_kept_responses: int = 256  # of those that are asked for with store=true, the last
    max_kept_bytes: int = 2**28  # of their conversations in memory, images included
    default_max_tokens: int = 4096  # of an answer, where neither request nor model says
    timeout_s: float = 600.0  # of a request, waiting included
    grace_s: float = 30.0  # what is under way has so long to end at a shutdown

    def __post_init__(self) -> None:
        positive = ("max_connections", "max_body_bytes", "max_samples", "default_max_tokens")
        for name in (*positive, "timeout_s", "receive_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}: expected more than 0")
        if self.max_held_bytes < self.max_body_bytes:
            raise ConfigError(
                f"max_held_bytes={self.max_held_bytes}: expected room for one body at least, "
                f"max_body_bytes={self.max_body_bytes}"
            )
        bounds = ("max_held_pixels", "max_waiting", "max_media", "max_kept_responses")
        for name in (*bounds, "max_kept_bytes", "grace_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)}: expected 0 or more")
        if not all(self.api_keys):
            raise ConfigError("got an empty API key; expected a text, or no key at all")
