"""README and docs say what is so: their code parses and imports, their commands and settings exist,
their links lead somewhere. What code and commands do is tested elsewhere."""

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.main import get_command

from mmspec.cli import app
from mmspec.config import Config, load_config
from mmspec.errors import ConfigError

UsageError = typer.BadParameter.__mro__[1]  # click's, wherever typer keeps it
ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md")])


def blocks(language: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in re.finditer(rf"^( *)```{language}\n(.*?)^\1```", text, re.M | re.S):
            line = text.count("\n", 0, found.start()) + 1
            body = "\n".join(row[len(found[1]) :] for row in found[2].splitlines())
            yield f"{page.relative_to(ROOT)}:{line}", body


def commands() -> Iterator[tuple[str, list[str]]]:
    """The words behind `mmspec` of each command that a page shows."""
    for place, body in (*blocks("bash"), *blocks("")):
        joined = body.replace("\\\n", " ")
        for line in joined.splitlines():
            if re.match(r"(\w+=\S+ )*mmspec [a-z]", line):
                yield place, shlex.split(line, comments=True)


@pytest.mark.parametrize(("place", "code"), [pytest.param(*b, id=b[0]) for b in blocks("python")])
def test_code_parses_and_what_it_imports_is_there(place: str, code: str) -> None:
    for node in ast.walk(ast.parse(code, filename=place)):
        if isinstance(node, ast.ImportFrom) and node.module and "mmspec" in node.module:
            if "integrations" in node.module:
                assert importlib.util.find_spec(node.module.rpartition(".")[0])
                continue
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{place}: {node.module}.{alias.name}"


def check(words: list[str]) -> None:
    """Raises where the words behind `mmspec` are no command line of it."""
    command, parent = get_command(app), None
    while isinstance(command, TyperGroup):
        parent = command.make_context(command.name, words[:1], parent=parent)
        command = command.commands[words[0]]
        words = words[1:]
    command.make_context(command.name, list(words), parent=parent)
    for option, value in pairwise(words):
        if option == "--set":
            load_config(None, [value])


@pytest.mark.parametrize(
    ("place", "words"), [pytest.param(*c, id=f"{c[0]} {' '.join(c[1])[:60]}") for c in commands()]
)
def test_commands_have_the_arguments_and_options_that_are_shown(
    place: str, words: list[str]
) -> None:
    check(words[words.index("mmspec") + 1 :])


@pytest.mark.parametrize(
    "wrong",
    ["generate m", "generate m p --nope", "gen m p", "generate m p --set decode.max_node=3"],
)
def test_a_wrong_command_would_be_found(wrong: str) -> None:
    with pytest.raises((UsageError, KeyError, ConfigError)):
        check(wrong.split())


def test_links_lead_to_files_and_headings_that_are_there() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"(?<!`)\[[^\]]+\]\(([^)#\s]*)(?:#[^)]*)?\)", text):
            if target and "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_settings_that_are_named_exist() -> None:
    # Not model.x and drafter.x: objects are called so, too.
    pattern = r"(?<![\w./])((?:decode|cache|inputs|drafter\.[a-z_]+)\.[a-z_]+)(?![\w/(.])"
    num_found = 0
    for page in PAGES:
        if page.name == "CHANGELOG.md":  # of earlier versions too
            continue
        for span in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
            for key in re.findall(pattern, span):
                num_found += 1
                value: object = Config()
                for name in key.split("."):
                    assert hasattr(value, name), f"{page.name}: {key}"
                    value = getattr(value, name)
    assert num_found > 30
