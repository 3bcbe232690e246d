"""What was measured of one request's decoding. Values; nothing here prints."""

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from mmspec.state import Verdict
from mmspec.tree import TokenTree


@dataclass(frozen=True)
class DrafterCount:
    """One drafter's nodes: scored, and accepted."""

    proposed: int = 0
    accepted: int = 0

    @property
    def acceptance(self) -> float:
        return self.accepted / self.proposed if self.proposed else 0.0


@dataclass(frozen=True)
class Times:
    """Seconds of wall time; in a batch, of the steps that the row took part in."""

    prefill_s: float = 0.0
    propose_s: float = 0.0
    score_s: float = 0.0  # the target's forwards
    verify_s: float = 0.0  # choosing tokens: processors, noise, argmax, text
    commit_s: float = 0.0
    observe_s: float = 0.0

    @property
    def decode_s(self) -> float:
        """All but the prefill."""
        return self.propose_s + self.score_s + self.verify_s + self.commit_s + self.observe_s


@dataclass(frozen=True)
class Choices:
    """What the controller did for a request, and what it went by."""

    asked: Mapping[str, int] = field(default_factory=dict)  # drafter -> steps it was asked in
    budgets: Mapping[int, int] = field(default_factory=dict)  # drafted nodes scored -> steps
    expected_tokens_per_step: float = 1.0
    plain_step_s: float = 0.0  # measured cost of a step without drafts; 0: not measured
    prepared_s: Mapping[str, float] = field(default_factory=dict)  # drafter -> what it took, all
    # in all, to make it ready to propose
    unprepared_s: Mapping[str, float] = field(default_factory=dict)  # drafter -> what that would
    # have taken, where it was not done


@dataclass(frozen=True)
class Stats:
    """One request's decoding."""

    prompt_tokens: int
    new_tokens: int
    steps: int  # score calls; the first token comes from the prefill, without one
    accepted_lengths: Mapping[int, int]  # drafted tokens accepted in a step -> number of steps
    by_drafter: Mapping[str, DrafterCount]
    times: Times
    choices: Choices = field(default_factory=Choices)
    is_lossless: bool = True  # False: the verifier does not keep the target's distribution
    reused_tokens: int = 0  # of the prompt, whose keys and values were there already
    encoded_media: int = 0  # images, tiles, videos or recordings that the encoders ran for
    reused_media: int = 0  # those that they need not run for

    @property
    def accepted_tokens(self) -> int:
        return sum(length * count for length, count in self.accepted_lengths.items())

    @property
    def tokens_per_step(self) -> float:
        """The field's acceptance length: 1 + accepted / verifications."""
        return 1.0 + self.accepted_tokens / max(self.steps, 1)

    @property
    def tokens_per_second(self) -> float:
        """Of decoding, after the first token."""
        return (self.new_tokens - 1) / self.times.decode_s if self.times.decode_s else 0.0

    @property
    def explanation(self) -> str:
        """What the controller did and why, in a sentence or two."""
        choices = self.choices
        asked = [f"{name} in {n}" for name, n in choices.asked.items()]
        ready = [f"{name} in {s * 1e3:.1f} ms" for name, s in choices.prepared_s.items()]
        left = [
            f"{name} ({s * 1e3:.1f} ms)"
            for name, s in choices.unprepared_s.items()
            if name not in choices.prepared_s
        ]
        drafted = {nodes: steps for nodes, steps in choices.budgets.items() if nodes}
        parts = [f"asked {', '.join(asked) or 'no drafter'} of {self.steps} steps"]
        if ready:
            parts.append(f"prepared {', '.join(ready)}")
        if left:
            parts.append(f"left unprepared, as it would not pay: {', '.join(left)}")
        if drafted:
            nodes = sum(n * steps for n, steps in drafted.items()) / sum(drafted.values())
            parts.append(f"scored {nodes:.1f} nodes in each of {sum(drafted.values())}")
        parts.append(
            f"expected {choices.expected_tokens_per_step:.2f} tokens a step, got "
            f"{self.tokens_per_step:.2f}"
        )
        if choices.plain_step_s:
            parts.append(
                f"a step without drafts was measured at {choices.plain_step_s * 1e3:.2f} ms"
            )
        return "; ".join(parts)


class Stopwatch:
    """Seconds of wall time by stage, of stages that come one after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, stage: str) -> None:
        """The stage has ended; the next one begins."""
        now = time.perf_counter()
        self.seconds[stage], self._since = now - self._since, now

    def spent(self, *stages: str) -> float:
        """Seconds of these stages together."""
        return sum(map(self.seconds.__getitem__, stages))


@dataclass
class StatsRecorder:
    """Gathers a row's stats while it is decoded."""

    prompt_tokens: int = 0
    is_lossless: bool = True
    steps: int = 0
    accepted_lengths: Counter[int] = field(default_factory=Counter)
    proposed: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    reused_tokens: int = 0
    encoded_media: int = 0
    reused_media: int = 0

    def add_seconds(self, seconds: Mapping[str, float]) -> None:
        for stage, spent in seconds.items():
            self.seconds[stage] += spent

    def record_step(self, tree: TokenTree, verdict: Verdict) -> None:
        self.steps += 1
        self.accepted_lengths[verdict.num_accepted] += 1
        if tree.num_nodes == 1:
            return
        self.proposed.update(tree.drafters[1:])
        self.accepted.update(tree.drafters[node] for node in verdict.path[1:])

    def finished(self, new_tokens: int, choices: Choices | None = None) -> Stats:
        by_drafter = {n: DrafterCount(c, self.accepted[n]) for n, c in self.proposed.items()}
        return Stats(
            prompt_tokens=self.prompt_tokens,
            new_tokens=new_tokens,
            steps=self.steps,
            accepted_lengths=dict(sorted(self.accepted_lengths.items())),
            by_drafter=by_drafter,
            times=Times(**{f"{stage}_s": s for stage, s in self.seconds.items()}),
            choices=choices or Choices(),
            is_lossless=self.is_lossless,
            reused_tokens=self.reused_tokens,
            encoded_media=self.encoded_media,
            reused_media=self.reused_media,
        )
