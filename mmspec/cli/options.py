"""Options that several commands have, and what --help shows of an option."""

from pathlib import Path
from typing import Annotated, Any

import typer

PROMPT, SAMPLING, DRAFTING, LOADING = "Prompt", "Sampling", "Drafting", "Loading"  # headings


def option(
    metavar: str,
    text: str,
    heading: str | None = None,
    *,
    name: str | None = None,
    min: float | None = None,
    show_default: bool | str = True,
) -> Any:
    """An option with a value: `metavar` names it, `text` stands beside it in --help. `name`: where
    it is not the parameter's."""
    return typer.Option(
        *filter(None, [name]),
        metavar=metavar,
        help=text,
        rich_help_panel=heading,
        min=min,
        show_default=show_default,
    )


def switch(
    name: str, text: str, heading: str | None = None, *, show_default: bool | str = True
) -> Any:
    """An option without a value: --help shows no type beside it."""
    return option("", text, heading, name=name, show_default=show_default)


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, a bundled model's name or a hub name.")
]
System = Annotated[str | None, option("TEXT", "The system prompt.", PROMPT)]
MaxNewTokens = Annotated[
    int | None,
    option("N", "At most so many an answer.", SAMPLING, show_default="the model's own, else 256"),
]
Temperature = Annotated[float | None, option("X", "0 is greedy.", SAMPLING)]
TopP = Annotated[float | None, option("X", "In (0, 1].", SAMPLING)]
TopK = Annotated[int | None, option("N", "0 is off.", SAMPLING)]
Schema = Annotated[
    Path | None, option("PATH", "A file with the JSON schema that the answer follows.", SAMPLING)
]
Stop = Annotated[
    list[str] | None, option("TEXT", "End before this string; may be repeated.", SAMPLING)
]
Drafter = Annotated[str | None, option("NAME", "In place of the configured one.", DRAFTING)]
Speculate = Annotated[
    bool | None,
    switch(
        "--speculate/--no-speculate",
        "On: always draft. Off: plain decoding. The text is the same.",
        DRAFTING,
        show_default="where it is faster",
    ),
]
ConfigName = Annotated[
    str | None,
    option("NAME", "A YAML file, or the name of one of mmspec's own.", LOADING, name="--config"),
]
Overrides = Annotated[
    list[str] | None,
    option("KEY=VALUE", "decode.max_nodes=32 and such; may be repeated.", LOADING, name="--set"),
]
Dtype = Annotated[str | None, option("NAME", "auto, float32, bfloat16, ...", LOADING)]
Device = Annotated[str | None, option("NAME", "auto, cpu, cuda, cuda:1, mps.", LOADING)]
AsJson = Annotated[bool, switch("--json", "One JSON object on stdout.")]
