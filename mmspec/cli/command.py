"""How a command shows its --help: arguments by their names, values by a word, switches alone."""

from typing import Any

from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A command whose arguments all have a metavar, and whose switches have no type beside them."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """[OPTIONS] MODEL PROMPT, whatever brackets this version of typer would add."""
        return ["[OPTIONS]", *(one.metavar or "" for one in _arguments(self, ctx))]

    def get_help_option(self, ctx: Any) -> Any:
        return _switch(super().get_help_option(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        for one in _arguments(self, ctx):
            one.display_type_rich = lambda ctx: None  # MODEL is enough; not MODEL <str>
            one.required = False  # or a line of its own says so; the usage has no brackets for it
        super().format_help(ctx, formatter)


class Group(TyperGroup):
    """A group of commands, in the same style."""

    def list_commands(self, ctx: Any) -> list[str]:
        """As they were added, `version` last: typer puts groups behind all others."""
        return sorted(super().list_commands(ctx), key=lambda name: name == "version")

    def get_help_option(self, ctx: Any) -> Any:
        return _switch(super().get_help_option(ctx))


def _arguments(command: TyperCommand, ctx: Any) -> list[Any]:
    return [one for one in command.get_params(ctx) if one.param_type_name == "argument"]


def _switch(option: Any) -> Any:
    if option is not None:
        option.metavar = ""
    return option
