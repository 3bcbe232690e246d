"""Options that several commands have."""

from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, a bundled model's name or a hub name.")
]
Drafter = Annotated[str | None, typer.Option(help="In place of the configured one.")]
ConfigName = Annotated[
    str | None, typer.Option("--config", help="A YAML file, or the name of one of mmspec's own.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="decode.max_nodes=32 and such; may be repeated."),
]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16, ...")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
