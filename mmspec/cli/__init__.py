"""The command line: `mmspec <command>`."""

from typing import Annotated

import typer

import mmspec
from mmspec.cli.batch import batch
from mmspec.cli.bench import bench
from mmspec.cli.chat import chat
from mmspec.cli.check import CheckCommand, check
from mmspec.cli.command import Command, Group
from mmspec.cli.generate import generate
from mmspec.cli.index import index
from mmspec.cli.plan import plan
from mmspec.cli.serve import serve
from mmspec.cli.train import train

# A command's module imports at its top no more than its --help needs; torch and transformers come
# inside the command, so that help and a misspelt word are answered at once.
app = typer.Typer(
    cls=Group, no_args_is_help=True, add_completion=False, rich_markup_mode="markdown"
)
app.command(cls=Command)(generate)
app.command(cls=Command)(batch)
app.command(cls=Command)(chat)
app.command(cls=CheckCommand)(check)
app.command(cls=Command)(bench)
app.command(cls=Command)(plan)
app.command(cls=Command)(serve)
app.command(cls=Command)(train)
app.add_typer(index, name="index")


@app.command(cls=Command)
def version() -> None:
    """Print the version of mmspec."""
    typer.echo(mmspec.__version__)


def _version(is_asked: bool) -> None:
    if is_asked:
        version()
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            metavar="",
            help="Print it, as version does.",
        ),
    ] = False,
) -> None:
    """Generate faster with vision-language and language models, without changing what they say."""


def main() -> None:
    app()
