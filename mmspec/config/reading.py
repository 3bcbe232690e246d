"""load_config: defaults, a YAML file and overrides become one `Config`."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import cast, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmspec.config.whole import Config
from mmspec.errors import ConfigError

CONFIG_DIR = Path(__file__).parents[1] / "configs"


def load_config(
    given: str | Path | Config | None = None,
    overrides: Sequence[str] | Mapping[str, object] = (),
) -> Config:
    """Read a configuration: defaults, then the YAML file, then the overrides.

    `given` is a YAML file or the bare name of one that comes with mmspec (`"plain"`); None is the
    defaults alone; of a Config a copy is returned, as it is. `overrides` are
    `"decode.max_nodes=32"` strings, or a mapping whose keys are dotted or nested.

    Raises ConfigError for a file that is not there or not a YAML mapping, for a key that mmspec
    does not know, for a value of the wrong type and for overrides of a Config.
    """
    if isinstance(given, Config):
        if overrides:
            raise ConfigError(
                f"overrides={overrides!r} beside a Config: set its own fields instead."
            )
        return deepcopy(given)
    config = OmegaConf.structured(Config)
    if given is not None:
        path = find_config(given)
        _assign(config, _read_yaml(path), source=str(path))
    if isinstance(overrides, str):
        raise ConfigError(f"overrides: got one string, expected a list of them: [{overrides!r}].")
    if isinstance(overrides, Mapping):
        _assign(config, overrides, source="overrides")
    else:
        for override in overrides:
            _assign(config, _read_override(override), source=f"override {override!r}")
    try:
        return cast(Config, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere, a value "???"
        raise ConfigError(f"{error.full_key}: {error.msg}.") from error


def config_names() -> list[str]:
    """The bare names that `load_config` knows."""
    return sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))


def find_config(path_or_name: str | Path) -> Path:
    """The file that a path or a bare name means; a bare name is first sought among mmspec's own."""
    path = Path(path_or_name)
    if path.name == str(path_or_name) and path.suffix not in (".yaml", ".yml"):
        if path.name in config_names():
            return CONFIG_DIR / f"{path.name}.yaml"
    if path.is_file():
        return path
    raise ConfigError(
        f"No config file {str(path_or_name)!r}. Give the path of a YAML file, or one of the names "
        f"{', '.join(config_names())}."
    )


def _read_yaml(path: Path) -> Mapping[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)  # nodes only, no objects
        if root is None:  # empty, or comments alone
            return {}
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(
                f"{path}: got a YAML {root.id}, expected a mapping such as `decode: "
                "{max_nodes: 32}`."
            )
        return _as_mapping(OmegaConf.create(text))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: {error.reason}.") from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from error


def _read_override(override: object) -> Mapping[str, object]:
    key = override.partition("=")[0] if isinstance(override, str) and "=" in override else ""
    if not isinstance(override, str) or not key.strip():
        raise ConfigError(
            f"Override {override!r}: expected key=value, such as decode.max_nodes=32."
        )
    try:
        return _as_mapping(OmegaConf.from_dotlist([override]))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"Override {override!r}: the value is not valid YAML: {error}") from error


def _as_mapping(given: DictConfig | ListConfig) -> Mapping[str, object]:
    # Interpolations are kept as they stand: they are resolved when everything is merged.
    return cast(Mapping[str, object], OmegaConf.to_container(given, resolve=False))


def _assign(config: DictConfig, given: Mapping[str, object], *, source: str) -> None:
    """Set every leaf of `given` in `config` (mutated)."""
    expected = dict(_keys(Config))
    for key, value in _leaves(given, expected):
        if key not in expected:
            raise ConfigError(f"{source}: unknown key {key!r}. {_suggest(key, expected)}")
        if is_dataclass(expected[key]):
            inner = ", ".join(f.name for f in fields(expected[key]))
            raise ConfigError(f"{source}: {key}: got {value!r}, expected the keys {inner}.")
        try:
            OmegaConf.update(config, key, value, merge=False)
        except OmegaConfBaseException as error:
            is_one = get_origin(expected[key]) is list and not isinstance(value, list | Mapping)
            raise ConfigError(
                f"{source}: {key}: got {value!r} ({type(value).__name__}), expected "
                f"{_type_name(expected[key])}{f', as [{value}]' if is_one else ''}."
            ) from error


def _keys(section: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Every dotted key below `section` with its type, sections among them."""
    for name, kind in get_type_hints(section).items():
        yield prefix + name, kind
        if is_dataclass(kind):
            yield from _keys(cast(type, kind), f"{prefix}{name}.")


def _leaves(
    given: Mapping[str, object], expected: Mapping[str, type], prefix: str = ""
) -> Iterator[tuple[str, object]]:
    """Dotted keys and values; goes down only into sections, so that an unknown one is named."""
    for name, value in given.items():
        key = f"{prefix}{name}"
        is_section = is_dataclass(expected.get(key))
        if is_section and isinstance(value, Mapping):
            yield from _leaves(value, expected, f"{key}.")
        elif not (is_section and value is None):  # `decode:` with nothing below it says nothing
            yield key, value


def _suggest(key: str, known: Mapping[str, type]) -> str:
    def similarity(other: str) -> tuple[float, float]:
        # Last parts first: two keys of one section are alike by their section alone.
        last, other_last = key.rpartition(".")[2], other.rpartition(".")[2]
        return (
            SequenceMatcher(None, last, other_last).ratio(),
            SequenceMatcher(None, key, other).ratio(),
        )

    section = key.rpartition(".")[0]
    prefix = f"{section}." if section in known else ""
    near = [k for k in known if similarity(k)[0] >= (0.6 if k.startswith(prefix) else 0.8)]
    if prefix:  # what was meant is a value, and most likely one of these
        near = [k for k in near if not is_dataclass(known[k])]
    if near:
        ranked = sorted(near, key=similarity, reverse=True)
        return f"Did you mean {' or '.join(ranked[:3])}?"
    inside = [k for k in known if k.startswith(prefix) and "." not in k[len(prefix) :]]
    return f"Known here: {', '.join(inside)}."


def _type_name(kind: type) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)  # `str | None` has no __name__
