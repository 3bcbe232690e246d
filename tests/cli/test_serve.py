"""`mmspec serve` as it is run: an address, a signal, an end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mmspec.cli import app

needs_extra = pytest.mark.skipif(
    not all(map(find_spec, ("starlette", "uvicorn", "prometheus_client"))),
    reason="needs the extra 'serve'",
)


def serve(*words: object) -> Result:
    return CliRunner().invoke(app, ["serve", *map(str, words)], env={"NO_COLOR": "1"})


@needs_extra
def test_it_answers_at_its_address_and_a_signal_lets_what_is_under_way_end_till_another() -> None:
    command = [sys.executable, "-c", "from mmspec.cli import main; main()", "serve", "nano-vlm"]
    process = subprocess.Popen(
        [*command, "--port", "0", "--name", "small", "--grace", "20"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "COLUMNS": "200"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        told = ""
        while "http://" not in told:
            line = process.stderr.readline()
            assert line, told
            told += line
        assert "model small on cpu" in told and "drafter prompt_lookup" in told
        found = re.search(r"http://127\.0\.0\.1:\d+/v1", told)
        assert found is not None
        body = {"messages": [{"role": "user", "content": "a"}], "temperature": 1, "seed": 1}
        # The socket listens already: what comes before uvicorn runs waits there.
        assert len(ask(found[0], {**body, "max_tokens": 5})) == 1

        answers: dict[int, list[dict[str, object]]] = {}
        begun = {300: threading.Event(), 30_000: threading.Event()}

        def stream(tokens: int) -> None:
            more = {"max_tokens": tokens, "ignore_eos": True, "stream": True}
            answers[tokens] = ask(found[0], {**body, **more}, begun[tokens])

        threads = [threading.Thread(target=stream, args=(tokens,)) for tokens in begun]
        for thread in threads:
            thread.start()
        assert all(event.wait(20) for event in begun.values())
        process.send_signal(signal.SIGTERM)
        threads[0].join(30)
        assert answers[300][-1]["choices"][0]["finish_reason"] == "length"  # type: ignore[index]
        process.send_signal(signal.SIGINT)
        threads[1].join(30)
        assert "shutting down" in answers[30_000][-1]["error"]["message"]  # type: ignore[index]
        assert process.wait(30) in (0, -signal.SIGTERM)
        log = process.stderr.read()
        assert log.count("POST /v1/chat/completions 200") == 2 and "300 tokens" in log
        assert "under way, 20 s to end" in log and "Traceback" not in log
    finally:
        process.kill()
        process.wait()


def ask(
    address: str, body: dict[str, object], begun: threading.Event | None = None
) -> list[dict[str, object]]:
    """The answer's objects, one or those of a stream."""
    request = urllib.request.Request(
        f"{address}/chat/completions", json.dumps(body).encode(), {"Content-Type": "a/json"}
    )
    lines = []
    with urllib.request.urlopen(request, timeout=60) as response:
        for line in response:
            if begun is not None:
                begun.set()
            lines.append(line.decode().strip().removeprefix("data: "))
    return [json.loads(line) for line in lines if line not in ("", "[DONE]")]


@needs_extra
def test_a_taken_port_is_told_before_the_model_is_read(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run = serve(tmp_path / "no-model", "--port", taken.getsockname()[1])
    assert run.exit_code == 2
    assert "cannot listen at 127.0.0.1" in run.stderr and "--port" in run.stderr
    assert "cannot listen" in serve("no-model", "--port", 99999).stderr


@needs_extra
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--api-key", ""], "empty API key"),
        (["--timeout", "0"], "timeout_s=0"),
        (["--set", "decode.max_node=3"], "decode.max_nodes"),
        (["--rows", "0"], "--rows"),
    ],
)
def test_a_wrong_setting_is_told(words: list[str], told: str) -> None:
    run = serve("tiny-vlm", *words)
    assert run.exit_code == 2 and told in run.stderr


def test_what_is_not_installed_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "uvicorn" else found(name, *a)
    )
    run = serve("tiny-vlm")
    assert run.exit_code == 2 and "pip install 'mmspec[serve]'" in run.stderr
    assert "uvicorn" in run.stderr
