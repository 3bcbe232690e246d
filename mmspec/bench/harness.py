"""Harness: what all scripts that measure share: ways in turns, and a report of where and how."""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from mmspec.bench.machine import Machine
from mmspec.tree import TokenTree

Way = TypeVar("Way")
Result = TypeVar("Result")


def turned(ways: Sequence[Way], turn: int) -> list[Way]:
    """The ways, at each turn begun with another one: none is always the first."""
    first = turn % len(ways) if ways else 0
    return [*ways[first:], *ways[:first]]


def in_turns(
    ways: Sequence[Way], measure: Callable[[Way], Result], *, rounds: int
) -> dict[Way, list[Result]]:
    """What `measure` says of each way, once a round, one way after the other. A round before all
    others warms up and is not counted."""
    found: dict[Way, list[Result]] = {way: [] for way in ways}
    for turn in range(-1, rounds):
        for way in turned(ways, turn):
            result = measure(way)
            if turn >= 0:
                found[way].append(result)
    return found


def binary_tree(nodes: int) -> TokenTree:
    """A tree to be scored; which tokens it holds costs nothing."""
    parents = (-1, *[node // 2 for node in range(nodes - 1)])
    tokens = tuple(range(10, 10 + nodes))
    return TokenTree(tokens, parents, (1.0,) * nodes, ("", *["bench"] * (nodes - 1)))


def write_report(path: Path, machine: Machine, values: Mapping[str, object]) -> None:
    """`values` as JSON, behind the command that is running and the machine."""
    command = command_line(f"scripts/{Path(sys.argv[0]).name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"command": command, "machine": asdict(machine), **values}
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def command_line(program: str) -> str:
    """The command that is running."""
    return " ".join([program, *map(without_folders, sys.argv[1:])])


def without_folders(text: str) -> str:
    """A file that is passed on says which model and data it was, not where they lay."""
    return re.sub(r"(?<![\w:.])\.{0,2}/\S+", lambda found: Path(found[0]).name, text)
