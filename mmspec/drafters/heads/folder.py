"""HeadFolder: the files of a published head, from a folder or the hub."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import cached_file

from mmspec.errors import ConfigError, ModelError
from mmspec.target.load import resolve_path

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_ALL = re.compile("")


@dataclass(frozen=True)
class HeadFolder:
    """What a head is made of: its config.json and its tensors under their names there, on the CPU
    as they are stored."""

    path: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @staticmethod
    def read(
        path: str | Path,
        *,
        revision: str | None = None,
        weights: Sequence[str] = WEIGHTS,
        wanted: re.Pattern[str] = _ALL,
    ) -> "HeadFolder":
        """A folder or a hub name. Its weights are the first of `weights` that is there, those whose
        names have what is `wanted` in them: no other file of several is opened. Of those stored by
        pickle (.bin, .pt) only tensors are read. Raises ModelError where a file is not there or
        cannot be read."""
        place = resolve_path(str(path))
        file = _found(place, "config.json", revision)
        if file is None:
            raise ModelError(f"{path}: no config.json; expected a head's folder or hub name")
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{file}: not valid JSON: {error}") from error
        if not isinstance(config, dict):
            raise ModelError(f"{file}: expected a JSON object")
        for name in weights:
            whole = _found(place, name, revision)
            if whole is not None:
                return HeadFolder(place, config, _tensors(whole, wanted))
            index = _found(place, f"{name}.index.json", revision)
            if index is not None:
                tensors: dict[str, Tensor] = {}
                for part in _parts(index, wanted):
                    shard = _found(place, part, revision)
                    if shard is None:
                        raise ModelError(f"{path}: {part}, which its index names, is not there")
                    tensors |= _tensors(shard, wanted)
                return HeadFolder(place, config, tensors)
        raise ModelError(f"{path}: no weights; expected {' or '.join(weights)}")

    @staticmethod
    def write(
        path: str | Path,
        config: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        *,
        weights: str = WEIGHTS[0],
    ) -> None:
        """Writes config.json and the safetensors file `weights`, each replaced in one go; the
        folder is made where there is none."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dict(config), indent=2, ensure_ascii=False)
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        partial = folder / f".{weights}.partial"
        save_file(kept, partial, metadata={"format": "pt"})
        partial.chmod(0o644)  # as any file; safetensors leaves it to its owner alone
        os.replace(partial, folder / weights)
        partial = folder / ".config.json.partial"
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, folder / "config.json")


def take(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, who: str
) -> dict[str, Tensor]:
    """The tensors for a module's state of the shapes `expected`. Raises ConfigError where one is
    missing, has another shape, or is not known."""
    missing = sorted(expected.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise ConfigError(
            f"{who}: the weights are not this head's; missing: {', '.join(missing) or 'none'}; "
            f"not known: {', '.join(unknown) or 'none'}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ConfigError(
                f"{who}: {name} has the shape {tuple(tensor.shape)}, expected "
                f"{tuple(expected[name].shape)} by its config.json"
            )
    return dict(tensors)


def _found(place: str, name: str, revision: str | None) -> Path | None:
    if Path(place).is_dir():
        file = Path(place) / name
        return file if file.is_file() else None
    try:
        found = cached_file(
            place, name, revision=revision, _raise_exceptions_for_missing_entries=False
        )
    except OSError as error:  # no such repository, or no way to it
        raise ModelError(f"{place}: {error}") from error
    return None if found is None else Path(found)


def _parts(index: Path, wanted: re.Pattern[str]) -> list[str]:
    """The files that an index names for tensors that are wanted."""
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted({file for name, file in files.items() if wanted.search(name)})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: expected a JSON object with a weight_map: {error!r}") from error


def _tensors(file: Path, wanted: re.Pattern[str]) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as stored:
                names = [name for name in stored.keys() if wanted.search(name)]
                return {name: stored.get_tensor(name) for name in names}
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, by what is wrong with the file
        raise ModelError(f"{file}: cannot be read: {error}") from error
    if isinstance(loaded, dict) and all(isinstance(value, Tensor) for value in loaded.values()):
        return {name: tensor for name, tensor in loaded.items() if wanted.search(name)}
    raise ModelError(f"{file}: expected a dict of tensors")
