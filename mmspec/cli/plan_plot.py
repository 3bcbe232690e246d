"""`mmspec plan --plot`: speed beside plain decoding over the context, a curve a drafter."""

from collections.abc import Sequence
from pathlib import Path

from mmspec.errors import InputError, MissingExtraError
from mmspec.plan.method import Method
from mmspec.plan.outlook import Outlook, short

_POWERS = range(10, 18)  # 1k to 128k


def plot(found: Outlook, methods: Sequence[Method], path: Path) -> None:
    """Writes a PNG: a picture a batch, the range between low and high assumption shaded. Raises
    MissingExtraError without matplotlib, InputError for a file that cannot be written."""
    try:
        from matplotlib.figure import Figure  # no pyplot: nothing is kept, no window is opened
    except ImportError as error:
        raise MissingExtraError(
            "--plot needs matplotlib: pip install 'mmspec[plot]', or leave --plot out"
        ) from error
    batches = list(dict.fromkeys(place.batch for place in found.places))
    contexts = [2 ** (power / 2) for power in range(2 * _POWERS[0], 2 * _POWERS[-1] + 1)]
    tokens = [int(context) for context in contexts]
    figure = Figure(figsize=(5.2 * len(batches), 4.6), layout="constrained")
    axes = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    for axis, batch in zip(axes, batches, strict=True):
        for index, method in enumerate(methods):
            curves = [
                [method.gain(found.target, v, context=c, batch=batch).ratio for c in tokens]
                for v in method.range
            ]
            colour = f"C{index % 10}"
            axis.plot(tokens, curves[0], color=colour, label=method.name)
            axis.fill_between(tokens, *curves, color=colour, alpha=0.12, linewidth=0)
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.set_xticks([2**power for power in _POWERS], [short(2**power) for power in _POWERS])
        axis.set_yticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
        axis.set_title(f"batch {batch}")
        axis.set_xlabel("context, tokens")
    target = found.target
    axes[0].set_ylabel("speed beside plain decoding")
    figure.suptitle(f"{target.shape.name} on {target.hardware.name}, {target.weights}: computed")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:  # a ValueError: of what kind would that be?
        raise InputError(
            f"--plot {path}: cannot be written: {error}; expected a .png file"
        ) from error
