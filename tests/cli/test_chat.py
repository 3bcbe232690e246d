import errno
import io
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from mmspec.cli import app
from mmspec.cli.chat import typed_lines

TEMPLATE = (
    "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
)


def chat(*words: object, text: str) -> Result:
    arguments = ["chat", *map(str, words)]
    return CliRunner().invoke(app, arguments, input=text, env={"NO_COLOR": "1"})


def test_answers_go_to_stdout_and_figures_to_stderr(scripted: Callable[[str], Path]) -> None:
    folder = scripted("QUICK fox")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    run = chat(folder, text="what?\nand what?\n")
    assert run.exit_code == 0, run.stderr
    assert run.stdout == "QUICK fox\nQUICK fox\n"
    first, second = [line for line in run.stderr.splitlines() if "tokens/s" in line]
    assert "10 tokens" in first and " 0 of " in first
    assert " 0 of " not in second, "the second turn finds the first"
    assert "prompt tokens reused" in second


def test_a_full_context_points_to_a_new_conversation(scripted: Callable[[str], Path]) -> None:
    folder, long = scripted("QUICK fox"), "a" * 2100
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    run = chat(folder, text=f"{long}\nwhat?\n{long}\n")
    alone, behind = [line for line in run.stderr.splitlines() if "context holds" in line]
    assert "shorten the prompt" in alone and "/new" not in alone
    assert "shorten the question, or begin a new conversation: /new" in behind
    assert "model.context=4096" in behind


def test_an_image_is_shown_and_mistakes_do_not_end_the_conversation(
    vlm: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    lines = [
        f"/image {tmp_path / 'red.png'}", "/image no-such.png", "/nonsense", "/image",
        "what?", "/new", "what?", "/help", "/quit", "never asked",
    ]  # fmt: skip
    run = chat(vlm, "--max-new-tokens", 3, "--seed", 1, text="\n".join(lines))
    assert run.exit_code == 0, run.stderr
    for told in ("no such file", "no command '/nonsense'", "expected /image PATH", "Ctrl-C ends"):
        assert told in run.stderr
    figures = [line for line in run.stderr.splitlines() if "tokens/s" in line]
    assert len(figures) == 2
    prompts = [int(line.split(" of ")[1].split()[0].replace(",", "")) for line in figures]
    assert prompts[0] - prompts[1] >= 256, "only the first question had the image"


def test_a_disk_that_fails_costs_its_image_alone(
    vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / "red.png", Path.read_bytes
    Image.new("RGB", (40, 30), "red").save(path)

    def failing(own: Path) -> bytes:
        if own == path:
            raise OSError(errno.EIO, "Input/output error")
        return read(own)

    monkeypatch.setattr(Path, "read_bytes", failing)
    run = chat(vlm, "--max-new-tokens", 2, text=f"/image {path}\nwhat?\n")
    assert run.exit_code == 0 and "Input/output error" in run.stderr
    assert run.stderr.count("tokens/s") == 1


def test_the_same_seed_gives_the_same_conversation(vlm: Path) -> None:
    options = ("--temperature", 1, "--seed", 5, "--max-new-tokens", 8)
    first, second, other = (
        chat(vlm, *options, *more, text="abc\nabd\n")
        for more in ((), ("--set", "cache.prefix_bytes=0"), ("--seed", 6))
    )
    assert first.stdout == second.stdout != other.stdout


def test_the_last_seed_there_is_holds_for_a_whole_conversation(vlm: Path) -> None:
    run = chat(vlm, "--seed", 2**64 - 1, "--max-new-tokens", 2, text="abc\nabd\n")
    assert run.exit_code == 0 and "seed=" not in run.stderr
    assert run.stderr.count("tokens/s") == 2


@pytest.mark.parametrize(
    ("option", "told"), [(("--seed", -1), "seed=-1: expected"), (("--top-p", 2), "top_p=2.0")]
)
def test_a_wrong_option_is_told_before_the_first_question(
    vlm: Path, option: tuple[str, int], told: str
) -> None:
    run = chat(vlm, *option, text="abc\nabd\n")
    assert run.exit_code == 2 and run.stderr.count(told) == 1


def test_an_answer_that_was_cut_off_says_so(scripted: Callable[[str], Path]) -> None:
    folder = scripted("QUICK fox")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert "ended by length" in chat(folder, "--max-new-tokens", 9, text="what?\n").stderr
    assert "ended by" not in chat(folder, text="what?\n").stderr


@pytest.mark.skipif(sys.platform == "win32", reason="its consoles edit lines by themselves")
def test_arrow_keys_edit_a_line_and_bring_one_back_and_ctrl_c_drops_it() -> None:
    code = (
        "from rich.console import Console; from mmspec.cli.chat import typed_lines\n"
        "for line in typed_lines(Console(stderr=True)): print('got', repr(line), flush=True)"
    )
    ours, theirs = os.openpty()
    ends = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen([sys.executable, "-c", code], **ends) as process:
        os.close(theirs)
        shown, begun = b"", 0

        def told(what: str) -> None:
            nonlocal shown, begun
            while what.encode() not in shown[begun:]:
                assert select.select([ours], [], [], 20)[0], shown
                shown += os.read(ours, 1024)
            begun = shown.index(what.encode(), begun) + len(what.encode())

        for typed, then in (
            (b"what\x1b[D\x1b[D!\r", "got 'wh!at'"),
            (b"\x1b[A?\r", "got 'wh!at?'"),
            (b"half", "half"),
        ):
            told("› ")
            os.write(ours, typed)
            told(then)
        process.send_signal(signal.SIGINT)
        while not select.select([ours], [], [], 0.5)[0]:  # one just before it waits goes unseen
            process.send_signal(signal.SIGINT)
        told("› ")
        os.write(ours, b"\x04")
        told("\n")  # what comes next begins a line; a Mac's process ends once all of it is read
        assert process.wait(30) == 0
    os.close(ours)


def test_ctrl_c_ends_what_is_read_from_a_file_or_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([KeyboardInterrupt(), EOFError()])

    def interrupted(prompt: str = "") -> str:
        raise next(told)

    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("builtins.input", interrupted)
    assert list(typed_lines(Console(stderr=True, force_terminal=True))) == []
    assert isinstance(next(told), EOFError), "nothing more is read"


def test_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    run = chat(tmp_path / "nothing", text="")
    assert run.exit_code == 2
    assert "no such folder" in run.stderr
