"""How a command loads its model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mmspec

if TYPE_CHECKING:
    from mmspec import Engine
    from mmspec.config import Config


@dataclass(frozen=True)
class Loading:
    """What the options of that name say, and --drafter. Raises ConfigError for a wrong setting: at
    once, before torch is imported."""

    model: str
    config: str | None
    overrides: Sequence[str] | None
    dtype: str | None
    device: str | None
    drafter: str | None

    def __post_init__(self) -> None:
        self.settings()

    def settings(self) -> "Config":
        """All settings; `drafter`, `dtype` and `device` are laid over them."""
        return mmspec.load_config(self.config, self.overrides or ())

    def load(self) -> "Engine":
        """Raises ModelError, ConfigError."""
        return mmspec.load(
            self.model,
            config=self.config,
            overrides=self.overrides or (),
            dtype=self.dtype,
            device=self.device,
            drafter=self.drafter,
        )
