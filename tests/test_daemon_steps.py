"""What becomes of a decoding thread when its process ends or is forked."""

import os
import subprocess
import sys

import pytest

LOADED = """
import os, sys, threading, mmspec
engine, begun = mmspec.load("tiny-vlm"), threading.Event()
asked = mmspec.Request("a", max_new_tokens=3500, ignore_eos=True, seed=1, temperature=1)
def decode():
    for piece in engine.stream(asked):
        begun.set()
threading.Thread(target=decode, daemon=True).start()
begun.wait()
"""
FORKED = """
child = os.fork()
if child == 0:
    try:
        engine.generate("b", max_new_tokens=3)
    except ValueError as error:
        print(error)
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
PREPARED = """
import multiprocessing, mmspec
engine = mmspec.load("tiny-vlm")
def prepare(told):
    told.send_bytes(bytes(engine.prepare("b").prompt.token_ids.tolist()))
here, told = multiprocessing.Pipe()
child = multiprocessing.get_context("fork").Process(target=prepare, args=(told,))
child.start()
told.close()
there = here.recv_bytes()
child.join()
print(there == bytes(engine.prepare("b").prompt.token_ids.tolist()))
"""
ASKED_LATE = """
import atexit
atexit.register(lambda: print(engine.generate("b", max_new_tokens=3, ignore_eos=True).tokens))
"""


def ended(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LOADED + script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_daemon_that_decodes_keeps_no_interpreter_from_its_end() -> None:
    """Nor does it tear it down: torch's own code may not be left in the middle."""
    done = ended(ASKED_LATE)
    assert done.returncode == 0 and done.stdout.count(",") == 2, done.stderr[-2000:]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system forks no processes")
def test_a_forked_child_is_told_to_load_its_own() -> None:
    done = ended(FORKED)
    told, status = done.stdout.splitlines()
    assert "load one in each process" in told and status == "7"
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system forks no processes")
def test_a_forked_child_prepares_what_its_parent_decodes() -> None:
    """As the workers of a DataLoader do: they compute nothing with the model."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARED],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["True"], done.stderr[-2000:]
