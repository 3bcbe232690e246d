"""Trials as a table: for a terminal, and for docs/models.md."""

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from mmspec.sweep.trial import TOGETHER, UNTRIED, Trial

_COLOURS = {
    "same": "green",
    "refused": "yellow",
    "unbuilt": "dim",
    "failed": "red",
    "differs": "red",
}
_ATTENTION = {"tree": "mmspec's", "model": "the model's", "none": "none", "": ""}
_HEAD = ("family", "scored as", "attention", "image", "audio", "video", "notes")


def rich_table(trials: Sequence[Trial]) -> Table:
    """A row a family, in colour."""
    table = Table("family", "verdict", "scored as", "attention", "media", "notes")
    for trial in trials:
        media = ", ".join(f"{kind} {_medium(found)}" for kind, found in trial.media.items())
        note = trial.reason or trial.attention_failure
        table.add_row(
            trial.model_type,
            Text(trial.verdict, _COLOURS[trial.verdict]),
            trial.shape,
            trial.attention,
            Text(media),
            Text(note[:160]),
        )
    return table


def markdown(by_version: Mapping[str, Sequence[Trial]]) -> str:
    """Tables of the families that are decoded, of those that are refused, and of those that were
    not tried. `by_version`: transformers' version -> its trials; the last one is what the rows
    say, the notes name another that the family was tried with."""
    last = list(by_version)[-1]
    others = {
        version: {trial.model_type: trial for trial in trials}
        for version, trials in by_version.items()
        if version != last
    }
    trials = sorted(by_version[last], key=lambda trial: trial.model_type)
    decoded = [trial for trial in trials if trial.verdict == "same"]
    refused = [trial for trial in trials if trial.verdict == "refused"]
    rest = [trial for trial in trials if trial.verdict not in ("same", "refused")]
    parts = [
        f"## Decoded ({len(decoded)})",
        _lines(_HEAD, [_decoded_row(trial, others) for trial in decoded]),
        f"## Refused ({len(refused)})",
        _lines(("family", "reason"), [_other_row(trial, others) for trial in refused]),
        f"## Not tried, or not as they should be ({len(rest)})",
        _lines(
            ("family", "verdict", "reason"),
            [(trial.model_type, trial.verdict, _note(trial.reason)) for trial in rest],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _decoded_row(trial: Trial, others: Mapping[str, Mapping[str, Trial]]) -> tuple[str, ...]:
    notes = []
    if trial.dtype != "float64":
        notes.append(f"in {trial.dtype}")
    if trial.cuts:
        notes.append(f"prompts are read whole: {trial.cuts}")
    if trial.as_generate != "same":
        notes.append(f"not compared with {trial.as_generate}")
    together = trial.media.get(TOGETHER, "same")
    if together != "same":
        notes.append(f"several kinds of media in one prompt fail in {together}")
    if trial.num_different < 3:
        notes.append("the tiny model hardly moves: little is shown")
    notes += _elsewhere(trial, others)
    media = (_medium(trial.media.get(kind, "")) for kind in ("image", "audio", "video"))
    return (
        trial.model_type,
        trial.shape,
        _ATTENTION[trial.attention],
        *media,
        _note("; ".join(notes)),
    )


def _other_row(trial: Trial, others: Mapping[str, Mapping[str, Trial]]) -> tuple[str, ...]:
    reason = trial.reason.removesuffix(" Use transformers' generate for it.")
    reason = reason.removesuffix(" Use transformers' generate.").removesuffix(".")
    return trial.model_type, _note("; ".join([reason, *_elsewhere(trial, others)]))


def _elsewhere(trial: Trial, others: Mapping[str, Mapping[str, Trial]]) -> list[str]:
    """What another version says of the family, where it was tried there."""
    notes = []
    for version, known in others.items():
        other = known.get(trial.model_type)
        if other is None:
            continue
        if (other.verdict, other.shape) == (trial.verdict, trial.shape):
            notes.append(f"{version} too")
        else:
            found = other.shape if other.verdict == "same" else other.verdict
            notes.append(f"{version}: {found}")
    return notes


def _medium(found: str) -> str:
    """same, that it fails, or that none was made for it."""
    if found.startswith("failed:"):
        return "fails"
    return "not tried" if found.startswith(UNTRIED) else found


def _note(text: str) -> str:
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= 220 else f"{flat[:217]}..."


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
