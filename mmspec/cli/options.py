"""Options that several commands have, and what --help shows of an option."""

from pathlib import Path
from typing import Annotated

import typer

SWITCH = ""  # the metavar of an option without a value: --help shows no type beside it
PROMPT, SAMPLING, DRAFTING, LOADING = "Prompt", "Sampling", "Drafting", "Loading"  # headings

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, a bundled model's name or a hub name.")
]
System = Annotated[
    str | None, typer.Option(metavar="TEXT", help="The system prompt.", rich_help_panel=PROMPT)
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(metavar="N", help="At most so many an answer.", rich_help_panel=SAMPLING),
]
Temperature = Annotated[
    float | None, typer.Option(metavar="X", help="0 is greedy.", rich_help_panel=SAMPLING)
]
TopP = Annotated[
    float | None, typer.Option(metavar="X", help="In (0, 1].", rich_help_panel=SAMPLING)
]
TopK = Annotated[int | None, typer.Option(metavar="N", help="0 is off.", rich_help_panel=SAMPLING)]
Schema = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="A file with the JSON schema that the answer follows.",
        rich_help_panel=SAMPLING,
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="End before this string; may be repeated.",
        rich_help_panel=SAMPLING,
    ),
]
Drafter = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="In place of the configured one.", rich_help_panel=DRAFTING),
]
Speculate = Annotated[
    bool | None,
    typer.Option(
        "--speculate/--no-speculate",
        metavar=SWITCH,
        help="On: always draft. Off: plain decoding. The text is the same.",
        show_default="where it is faster",
        rich_help_panel=DRAFTING,
    ),
]
ConfigName = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="NAME",
        help="A YAML file, or the name of one of mmspec's own.",
        rich_help_panel=LOADING,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="decode.max_nodes=32 and such; may be repeated.",
        rich_help_panel=LOADING,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="auto, float32, bfloat16, ...", rich_help_panel=LOADING),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, ...", rich_help_panel=LOADING),
]
AsJson = Annotated[bool, typer.Option("--json", metavar=SWITCH, help="One JSON object on stdout.")]
