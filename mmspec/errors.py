"""The kinds of error and warning that mmspec raises. Every message says what it got, what it
expected and how to mend it."""

from collections.abc import Iterable
from difflib import get_close_matches


class MmspecError(Exception):
    """Base of every error that mmspec raises on purpose."""


class InputError(MmspecError, ValueError):
    """A request cannot be used as it is: its text, media or parameters."""


class TooLargeError(InputError):
    """A request's media are larger than `InputLimits` allow."""


class ConfigError(MmspecError, ValueError):
    """A configuration key or value is not one that mmspec knows."""


class ModelError(MmspecError):
    """A model folder cannot be loaded, or the model cannot be decoded by mmspec."""


class DecodeError(MmspecError):
    """A request failed while it was prepared or decoded, by no mistake that is known to be its own;
    other requests of its batch go on."""


class DatastoreError(MmspecError):
    """A datastore cannot be opened or written, or does not fit the target."""


class MissingExtraError(MmspecError, ImportError):
    """An optional package is needed; the message names the extra that installs it."""


class GraphWarning(UserWarning):
    """A model's calls cannot be recorded as CUDA graphs; they are computed without."""


class BackendWarning(UserWarning):
    """An attention backend or a kernel failed; something else computes in its place."""


def failed_to_begin(error: Exception) -> MmspecError:
    """What is told where a request fails before its first token: the error, if it is mmspec's."""
    if isinstance(error, MmspecError):
        return error
    failure = DecodeError(f"before its first token: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def check_setting(section: str, name: str, is_right: bool, got: object, expected: str) -> None:
    """Raises ConfigError for a value of `section`.`name` that is not right."""
    if not is_right:
        raise ConfigError(f"{section}.{name}={got!r}: expected {expected}")


def check_one_of(key: str, value: str, expected: Iterable[str]) -> None:
    """Raises ConfigError for a value of `key` that is none of those expected."""
    if value not in expected:
        raise ConfigError(f"{key}={value!r}: expected one of {', '.join(expected)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """For a name that is not known, the one that may have been meant; else all there are."""
    names = list(known)
    near = get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(names)}"
