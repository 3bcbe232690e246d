"""One request decoded with drafts and plainly, in turns: how fast, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from mmspec.cli.render import Comparison, sameness, speed_bars

if TYPE_CHECKING:
    from mmspec.requests import Result

_NOISE = 1.1  # a ratio is no better known than so
_DRAFTED = 1.05  # tokens a step from which drafts had a part in the speed


@dataclass(frozen=True)
class Pairs:
    """Runs with drafts, each beside a plain one from the same seed."""

    pairs: Sequence[Comparison]

    @property
    def is_identical(self) -> bool:
        return self.differing.is_identical

    @property
    def differing(self) -> Comparison:
        """A run beside one whose text differs, where there is one."""
        return self.beside(self.pairs[0].drafted)

    def beside(self, answer: "Result") -> Comparison:
        """An answer with a run whose text differs, where there is one."""
        runs = [run for pair in self.pairs for run in (pair.plain, pair.drafted)]
        compared = [Comparison(answer, run) for run in runs]
        return next((one for one in compared if not one.is_identical), compared[0])

    @property
    def speeds(self) -> dict[str, float]:
        """The fastest run of each, in tokens a second: other load only ever slows a run down."""
        return {name: max(p.speeds[name] for p in self.pairs) for name in self.pairs[0].speeds}

    @property
    def ratio(self) -> float:
        """How many times plain decoding's speed; 0 where the text is too short to tell."""
        drafted, plain = self.speeds.values()
        return drafted / plain if plain else 0.0

    @property
    def tokens_per_step(self) -> float:
        """Of the drafted run whose speed is shown: the engine learns from one to the next."""
        fastest = max(self.pairs, key=lambda pair: pair.drafted.stats.tokens_per_second)
        return fastest.drafted.stats.tokens_per_step

    @property
    def is_explained(self) -> bool:
        """False for a ratio that drafts cannot have brought: a step with drafts takes no less than
        a plain one, so that they gain at most a factor of their tokens a step."""
        return self.ratio <= _NOISE * self.tokens_per_step

    @property
    def is_gain(self) -> bool:
        """Whether the ratio may be shown as what drafts brought."""
        return self.is_explained and self.tokens_per_step >= _DRAFTED


def pairs_text(runs: Pairs) -> Text:
    """Both speeds, what they are worth, how they were measured, whether the texts are the same."""
    lines = [speed_bars(runs.speeds, colour="green" if runs.is_gain else "dim")]
    if runs.ratio:
        lines += [ratio_text(runs), Text(_measured(runs), style="dim")]
    return Text("\n").join([*lines, sameness(runs.differing)])


def ratio_text(runs: Pairs) -> Text:
    """The ratio: in bold where it is what drafts brought, else why it is not."""
    ratio, per_step = f"{runs.ratio:.2f}x", f"{runs.tokens_per_step:.2f} tokens a step"
    if len(runs.pairs) > 1:  # the engine may have learnt to draft more, or not at all
        per_step += " in the faster run"
    if runs.tokens_per_step < _DRAFTED:
        return Text(f"{per_step}: drafts had next to no part; {ratio} is no gain of theirs")
    if not runs.is_explained:
        return Text(f"{per_step} cannot bring {ratio}: the machine had other work meanwhile")
    return Text.assemble((ratio, "bold"), f" plain decoding's speed, at {per_step}")


def _measured(runs: Pairs) -> str:
    if len(runs.pairs) == 1:
        return "one run of each, after the prompt is read: a rough figure"
    each = " and ".join(f"{pair.ratio:.2f}x" for pair in runs.pairs)
    return (
        f"the fastest of {len(runs.pairs)} runs each, in turns, after the prompt is read; "
        f"pair by pair {each}"
    )
