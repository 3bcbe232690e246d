"""`import mmspec` is quick, and its names are where they are said to be."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mmspec

PROBE = """
import sys
import mmspec
assert not {"torch", "transformers", "numpy", "omegaconf"} & set(sys.modules)
assert set(mmspec.__all__) <= set(dir(mmspec))
from mmspec import Config
assert Config is mmspec.Config is mmspec.config.Config
assert "torch" not in sys.modules
"""


def python(*words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True)


def test_the_package_is_imported_without_torch_and_its_names_come_when_asked_for() -> None:
    run = python("-c", PROBE)
    assert run.returncode == 0, run.stderr


def test_the_package_runs_as_the_command() -> None:
    run = python("-m", "mmspec", "version")
    assert run.stdout.strip() == mmspec.__version__, run.stderr


def test_type_checkers_see_the_names_that_there_are() -> None:
    assert mmspec.__file__ is not None
    (block,) = (
        node
        for node in ast.parse(Path(mmspec.__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert seen == mmspec._HOMES
    assert sorted([*seen, "MmspecError"]) == mmspec.__all__


def test_every_name_is_there_and_no_other() -> None:
    given: dict[str, object] = {}
    exec("from mmspec import *", given)
    for name in mmspec.__all__:
        assert given[name] is getattr(mmspec, name)
        assert getattr(mmspec, name).__module__.startswith("mmspec.")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mmspec.nothing  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="nothing"):
        exec("from mmspec import nothing")


def test_a_module_is_an_attribute_without_an_import_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(vars(mmspec), "noise", raising=False)
    assert mmspec.noise is sys.modules["mmspec.noise"]
