"""The command line: `mmspec <command>`."""

from importlib.metadata import version as installed_version

import typer

from mmspec.cli.batch import batch
from mmspec.cli.bench import bench
from mmspec.cli.chat import chat
from mmspec.cli.check import CheckCommand, check
from mmspec.cli.generate import generate
from mmspec.cli.index import index
from mmspec.cli.plan import plan

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="markdown")
app.command()(generate)
app.command()(batch)
app.command()(chat)
app.command(cls=CheckCommand)(check)
app.command()(bench)
app.command()(plan)
app.add_typer(index, name="index")


@app.callback()
def root() -> None:
    """Generate faster with vision-language models, without changing what they say."""


@app.command()
def version() -> None:
    """Print the version of mmspec."""
    typer.echo(installed_version("mmspec"))


def main() -> None:
    app()
