"""extra: what is said where a framework is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmspec.errors import MissingExtraError


@contextmanager
def extra(name: str, package: str) -> Iterator[None]:
    """For the imports of `package`, which the extra `name` installs. Raises MissingExtraError."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("mmspec"):
            raise
        raise MissingExtraError(
            f"mmspec.integrations.{name} needs {package} ({error}): pip install 'mmspec[{name}]'"
        ) from error
