"""Report: what came of a scenario."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mmspec.errors import ConfigError, ModelError
from mmspec.requests import Result


class Refused(Exception):
    """The scenario cannot be played, and why."""


@contextmanager
def may_refuse(*errors: type[Exception]) -> Iterator[None]:
    """What is drawn is made within it: where mmspec refuses that, by `errors` too, there is no such
    scenario. Behind it such an error is a finding."""
    try:
        yield
    except (ConfigError, ModelError, *errors) as error:
        raise Refused(str(error)) from error


@dataclass
class Report:
    """What came of a scenario."""

    seed: int
    title: str = ""
    wrong: list[str] = field(default_factory=list)
    refused: str | None = None  # why the engine could not be made
    tokens: int = 0
    accepted: int = 0
    requests: int = 0
    ties: int = 0  # answers in float32 that part where two tokens are as good
    kinds: list[str] = field(default_factory=list)  # of its rounds

    def begin(self, number: int, kind: str) -> None:
        """A round of this kind."""
        self.kinds.append(kind)
        self.title += f" | round {number}: {kind}"

    def count(self, got: Result) -> None:
        """What was said, and how much of it was drafted."""
        for sample in got.samples:
            lengths = sample.stats.accepted_lengths
            self.requests += 1
            self.tokens += len(sample.tokens)
            self.accepted += sum(length * steps for length, steps in lengths.items())
