"""A framework that is not installed: the error names the extra; mmspec itself needs none."""

import importlib
import subprocess
import sys

import pytest

from mmspec.errors import MissingExtraError


@pytest.mark.parametrize(
    ("name", "package"),
    [("langchain", "langchain_core"), ("llamaindex", "llama_index"), ("haystack", "haystack")],
)
def test_a_missing_framework_is_told_with_its_extra(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [*sys.modules]:
        if f"{module}.".startswith((f"{package}.", f"mmspec.integrations.{name}.")):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'mmspec\[{name}\]'"):
        importlib.import_module(f"mmspec.integrations.{name}")


def test_mmspec_imports_no_framework() -> None:
    code = (
        "import sys, mmspec, mmspec.cli, mmspec.integrations.transformers\n"
        "import mmspec.integrations.vllm, mmspec.batch\n"
        "print({m.split('.')[0] for m in sys.modules} & "
        "({'langchain_core', 'llama_index', 'haystack', 'vllm'} | "
        "{'starlette', 'uvicorn', 'prometheus_client'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "set()", run.stdout + run.stderr
