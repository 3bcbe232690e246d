"""`mmspec plan`: what speculation will bring on a machine, before it is rented."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.console import Console

from mmspec.cli.console import consoles, mistakes_told
from mmspec.cli.options import AsJson, option
from mmspec.cli.plan_plot import plot
from mmspec.cli.plan_table import compared_table, heading, pays_table, score_table, speed_tables
from mmspec.errors import ConfigError
from mmspec.plan.hardware import HARDWARE, find_hardware
from mmspec.plan.measured import Compared, compare, is_score_report, slower
from mmspec.plan.method import Method
from mmspec.plan.methods import standard_methods, with_range
from mmspec.plan.outlook import SCORED_NODES, Outlook, outlook
from mmspec.plan.roofline import Forward, Precision
from mmspec.plan.shape import SHAPES, find_shape

_UNITS = {"k": 1024, "m": 1024**2}


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help=f"A folder, a bundled model's name, or one of {', '.join(SHAPES)}.",
        ),
    ],
    gpu: Annotated[
        str,
        option(
            "NAME",
            f"{', '.join(HARDWARE)}, cpu (measured now), or TB/s,TFLOP/s,TFLOP/s: bandwidth, "
            "matrix products, attention.",
        ),
    ] = "h200",
    context: Annotated[
        list[str] | None, option("N", "Tokens a row, 4k or 4096; may be repeated.")
    ] = None,
    batch: Annotated[
        list[int] | None, option("N", "Rows decoded together; may be repeated.", min=1)
    ] = None,
    weights: Annotated[
        str | None, option("NAME", f"{', '.join(get_args(Precision))}; fp32 on a CPU, bf16 else.")
    ] = None,
    draft_model: Annotated[
        str | None, option("MODEL", "A smaller model that drafts, given as MODEL is.")
    ] = None,
    view: Annotated[int, option("N", "Tokens that compressed_kv's drafts see.", min=1)] = 4096,
    assume: Annotated[
        list[str] | None,
        option(
            "NAME=LOW,HIGH", "Acceptance, or tokens a step, of the drafters whose names begin so."
        ),
    ] = None,
    host_ms: Annotated[
        float, option("X", "What a forward takes at least; 0: with CUDA graphs.", min=0)
    ] = 0.0,
    measured: Annotated[
        list[Path] | None,
        option("PATH", "A result of scripts/bench_score.py, or a folder of them."),
    ] = None,
    plot_file: Annotated[
        Path | None, option("PATH", "Also draw it; a PNG. Needs matplotlib.", name="--plot")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict what each drafter brings on a GPU, by batch and context, and where it pays.

    A roofline over the model's shape: no weights are loaded. See docs/plan.md.
    """
    stdout, stderr = consoles()
    with mistakes_told(stderr):
        hardware = replace(find_hardware(gpu), host_s=host_ms / 1000)
        precision = _precision(weights, is_cpu=gpu.lower() == "cpu")
        state: Precision = "fp32" if precision == "fp32" else "bf16"
        target = Forward(find_shape(model), hardware, precision, state)
        methods = standard_methods(
            target, draft=None if draft_model is None else find_shape(draft_model), view=view
        )
        for text in assume or ():
            methods = _assumed(methods, text)
        found = outlook(
            target,
            methods,
            contexts=[_tokens(text) for text in context or ("4k", "32k", "128k")],
            batches=batch or [1, 4, 16],
        )
        compared = [
            one
            for path in _reports(measured or ())
            for one in compare(path, hardware, precision="fp32")
        ]
        if plot_file is not None:
            plot(found, methods, plot_file)
            stderr.print(f"Drawn to {plot_file}")
        if as_json:
            stdout.print(json.dumps(_values(found, methods, compared)), soft_wrap=True)
        else:
            _show(stdout, found, methods, compared)


def _show(
    console: Console, found: Outlook, methods: list[Method], compared: list[Compared]
) -> None:
    console.print(heading(found))
    console.print(score_table(found, SCORED_NODES))
    console.print(speed_tables(found, methods))
    console.print(pays_table(found))
    if compared:
        console.print(compared_table(compared))


def _values(found: Outlook, methods: list[Method], compared: list[Compared]) -> dict[str, object]:
    target = found.target
    hardware = {
        name: None if value == float("inf") else value
        for name, value in asdict(target.hardware).items()
    }
    return {
        "model": asdict(target.shape),
        "hardware": hardware,
        "weights": target.weights,
        "weight_bytes": target.weight_bytes,
        "assumed": {m.name: {"what": m.assumed, "range": list(m.range)} for m in methods},
        "places": [asdict(place) for place in found.places],
        "pays": [{**asdict(one), "text": one.text} for one in found.pays],
        "measured": [{**asdict(one), "ratio": one.ratio} for one in compared],
        "measured_over_predicted": slower(compared) if compared else None,
    }


def _precision(weights: str | None, *, is_cpu: bool) -> Precision:
    if weights is None:
        return "fp32" if is_cpu else "bf16"
    if weights not in get_args(Precision):
        raise ConfigError(f"weights {weights!r}: expected one of {', '.join(get_args(Precision))}")
    return cast(Precision, weights)


def _tokens(text: str) -> int:
    """4096, 4k or 1m."""
    unit = _UNITS.get(text[-1:].lower(), 1)
    digits = text[:-1] if unit > 1 else text
    if not digits.isdigit() or not int(digits):
        raise ConfigError(f"context {text!r}: expected tokens, such as 4096 or 4k")
    return int(digits) * unit


def _assumed(methods: list[Method], text: str) -> list[Method]:
    name, _, values = text.partition("=")
    try:
        low, high = (float(part) for part in (values.split(",") * 2)[:2])
    except ValueError:
        raise ConfigError(f"assume {text!r}: expected NAME=LOW,HIGH or NAME=VALUE") from None
    chosen = [method for method in methods if method.name.startswith(name)]
    if not chosen or not name:
        known = "; ".join(method.name for method in methods)
        raise ConfigError(f"assume {text!r}: no drafter's name begins so; there are {known}")
    for method in chosen:
        bounds = (0.0, 1.0) if method.assumed == "acceptance" else (1.0, float("inf"))
        if not bounds[0] <= low <= high <= bounds[1]:
            raise ConfigError(
                f"assume {text!r}: {method.name} expects {method.assumed} from {bounds[0]:g} to "
                f"{bounds[1]:g}, low before high"
            )
    return with_range(methods, name, low, high)


def _reports(paths: Sequence[Path]) -> list[Path]:
    """The files; of a folder those that can be read."""
    found: list[Path] = []
    for path in paths:
        own = sorted(filter(is_score_report, path.glob("*.json"))) if path.is_dir() else [path]
        if not own:
            raise ConfigError(f"{path}: holds no result of scripts/bench_score.py")
        found += own
    return found
