"""Checkpoints: one file, replaced in one go, that is read without running what it holds."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmspec.errors import ConfigError


def save_checkpoint(values: Mapping[str, object], path: Path) -> None:
    """Writes tensors and plain values; a kill at any time leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(dict(values), partial)
    os.replace(partial, path)


def load_checkpoint(path: Path, device: torch.device | str) -> dict[str, Any]:
    """What `save_checkpoint` wrote, its tensors on `device`. Raises ConfigError for another
    file."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"{path}: cannot be read as a checkpoint: {error}; train anew, into another folder"
        ) from error
