"""--help, version and a wrong word: answered at once, in plain words."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

import mmspec
from mmspec.cli import app

COLD = """
import sys
from typer.testing import CliRunner
from mmspec.cli import app
for words, code in [line.rsplit(":", 1) for line in sys.argv[1:]]:
    run = CliRunner().invoke(app, words.split())
    assert run.exit_code == int(code), (words, run.exit_code, run.output)
    heavy = {"torch", "transformers"} & set(sys.modules)
    assert not heavy, f"mmspec {words} imports {heavy}"
"""


def pages(group: TyperGroup, *words: str) -> Iterator[tuple[str, ...]]:
    """The words of every command and group."""
    yield words
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from pages(command, *words, name)
        else:
            yield *words, name


ROOT = get_command(app)
assert isinstance(ROOT, TyperGroup)
PAGES = [" ".join(words) for words in pages(ROOT)]
# Words, and the exit code.
QUICK = ["genrate m p:2", "generate m p --sed 3:2", "generate m:2", "index biuld:2",
            "generate m p --seed x:2", "check m --nonsense:3", "batch m:2",
            "generate m p --compare --no-speculate:2", "generate m @/no/such.txt:2",
            "generate m p --set decode.max_node=3:2", "chat m --config plian:2",
            "check m --set decode.max_node=3:3", "bench m --set decode.max_node=3:2",
            "serve m --set decode.max_node=3:2", "serve m --port x:2",
            "batch m i --out o --set decode.max_node=3:2",
            "plan llama-3-8b --gpu h300:2", "plan llama-3-8b --json:0"]  # fmt: skip


def test_the_length_of_an_answer_that_nobody_asked_for_is_told() -> None:
    from mmspec.params import DEFAULT_MAX_NEW_TOKENS

    shown = CliRunner().invoke(app, ["generate", "--help"], env={"COLUMNS": "200"}).stdout
    assert f"the model's own, else {DEFAULT_MAX_NEW_TOKENS}" in shown


def test_help_version_and_a_wrong_word_import_neither_torch_nor_transformers() -> None:
    lines = ["version:0", "--version:0", *(f"{page} --help:0" for page in PAGES), *QUICK]
    run = subprocess.run(
        [sys.executable, "-c", COLD, *lines],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("page", PAGES)
def test_help_shows_words_and_no_types_of_python(page: str, columns: int) -> None:
    run = CliRunner().invoke(
        app, [*page.split(), "--help"], env={"NO_COLOR": "1", "COLUMNS": str(columns)}
    )
    assert run.exit_code == 0, run.output
    for ugly in ("<", "list[", "{", "TEXT TEXT", "INTEGER", "BOOLEAN"):
        assert ugly not in run.stdout, run.stdout
    assert all(len(line) <= columns for line in run.stdout.splitlines())


def test_the_version_is_the_package_s_own_installed_or_not() -> None:
    for words in ("version", "--version"):
        assert CliRunner().invoke(app, [words]).stdout == f"{mmspec.__version__}\n"


def test_usage_names_the_arguments() -> None:
    run = CliRunner().invoke(app, ["batch", "--help"], env={"NO_COLOR": "1"}, prog_name="mmspec")
    assert "Usage: mmspec batch [OPTIONS] MODEL INPUTS..." in run.stdout


def test_a_misspelt_command_is_told_with_the_right_one() -> None:
    run = CliRunner().invoke(app, ["genrate"], env={"NO_COLOR": "1"})
    assert run.exit_code == 2
    assert "genrate" in run.stderr and "Did you mean 'generate'?" in run.stderr
