"""Switches: parts of mmspec that a check turns on and off to compare them, by configuration key."""

from dataclasses import dataclass

from mmspec.config import DecodeConfig


@dataclass(frozen=True)
class Switch:
    """One part. A version of mmspec without it is reported, not failed."""

    what: str
    key: str  # of `decode`
    on: str
    off: str

    @property
    def is_there(self) -> bool:
        return self.key in DecodeConfig.__dataclass_fields__

    def overrides(self, *, on: bool) -> list[str]:
        """Of the configuration; none where there is no such part."""
        return [f"decode.{self.key}={self.on if on else self.off}"] if self.is_there else []


GRAPHS = Switch("CUDA graphs", "cuda_graphs", "auto", "never")
BITWISE = Switch("bitwise mode", "exactness", "bitwise", "standard")
