"""Timeline: when a text's first and last token were there, by the wall clock and by CPU time."""

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Moment:
    """Seconds since the beginning."""

    wall_s: float
    cpu_s: float  # of the whole process, all of its threads


@dataclass(frozen=True)
class Run:
    """One prompt decoded once by one method.

    The clock starts with the processed prompt. What comes first may be several tokens: a peer
    that drafts before it has read the prompt verifies its first draft together with the prompt.
    """

    tokens: tuple[int, ...]  # the generated ones, an ending EOS included
    num_first: int  # tokens that came first, all at once
    first: Moment
    last: Moment  # the last token was there
    end: Moment  # the call returned
    verifications: int  # forwards that checked a draft or went without one
    accepted: int  # drafted tokens that were kept

    @property
    def num_decoded(self) -> int:
        """Tokens after the first ones, which the decode speed counts."""
        return len(self.tokens) - self.num_first

    @property
    def decode(self) -> Moment:
        """Seconds between the first tokens and the last."""
        return Moment(self.last.wall_s - self.first.wall_s, self.last.cpu_s - self.first.cpu_s)


class Timeline:
    """Notes the time whenever there are more tokens: the same for all methods."""

    def __init__(self) -> None:
        self.counts: list[int] = []  # tokens so far, at each moment
        self.moments: list[Moment] = []
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def now(self) -> Moment:
        return Moment(time.perf_counter() - self._wall, time.process_time() - self._cpu)

    def note(self, num_tokens: int) -> None:
        """There are `num_tokens` tokens now."""
        if not self.counts or num_tokens > self.counts[-1]:
            self.counts.append(num_tokens)
            self.moments.append(self.now())

    def run(self, tokens: tuple[int, ...], *, verifications: int, accepted: int) -> Run:
        """The finished run; the call returned just now."""
        return Run(
            tokens=tokens,
            num_first=self.counts[0],
            first=self.moments[0],
            last=self.moments[-1],
            end=self.now(),
            verifications=verifications,
            accepted=accepted,
        )
