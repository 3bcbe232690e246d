"""The examples run as they are, offline, where their framework is installed."""

import os
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(
    ("script", "package", "extra"),
    [
        ("rag_langchain.py", "langchain_core", "langchain"),
        ("rag_llamaindex.py", "llama_index.core", "llamaindex"),
        ("rag_haystack.py", "haystack", "haystack"),
    ],
)
def test_an_example_answers_from_what_it_retrieved(
    script: str,
    package: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
    pytest.importorskip("faiss", reason="needs the extra 'cpu'")
    pytest.importorskip(package, reason=f"needs the extra {extra!r}")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    shown = capsys.readouterr().out
    assert shown.count("Quote Entry") >= 8, (
        shown
    )  # each question above its answer, and in the table
    # Of four, the small model may get one wrong on another machine.
    assert shown.count("✓") >= 3, shown
    assert "ledger-20" in shown and shown.count("tokens a step") >= 4, shown


def test_every_example_is_run() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")} - {"ledger.py"}
    assert scripts == {"rag_langchain.py", "rag_llamaindex.py", "rag_haystack.py"}
