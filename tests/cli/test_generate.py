import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pdfs import pdf, reads_pdf
from PIL import Image
from typer.testing import CliRunner, Result

from mmspec.cli import app
from mmspec.cli.prompt import read_prompt
from mmspec.engine import Engine
from mmspec.row import Row

Scripted = Callable[[str], Path]
PROMPT = "QUICK fox; QUICK fox; what?"
TERMINAL = {"FORCE_COLOR": "1", "NO_COLOR": "", "TERM": "xterm-256color", "COLUMNS": "200"}


def generate(*words: object, text: str | None = None, env: dict[str, str] | None = None) -> Result:
    arguments = ["generate", *map(str, words)]
    return CliRunner().invoke(app, arguments, input=text, env={"NO_COLOR": "1", **(env or {})})


def test_stdout_has_the_answer_alone_and_stderr_the_figures(scripted: Scripted) -> None:
    run = generate(scripted("QUICK fox"), PROMPT, "--seed", 7)
    assert run.exit_code == 0, run.stderr
    assert run.stdout == "QUICK fox\n"
    assert len(run.stderr.splitlines()) == 1, "a log is not wrapped"
    for figure in ("10 tokens", "a step", "prompt_lookup", "accepted", "seed 7", "ended by eos"):
        assert figure in run.stderr


def test_drafted_tokens_are_coloured_on_a_terminal_only(scripted: Scripted) -> None:
    folder = scripted("QUICK fox")
    shown = generate(folder, PROMPT, env=TERMINAL)
    assert "\x1b[32m" in shown.stdout
    assert "■" in shown.stderr and "drafted by prompt_lookup" in shown.stderr
    for env in ({}, {**TERMINAL, "NO_COLOR": "1"}):
        assert "\x1b[3" not in generate(folder, PROMPT, env=env).stdout


def test_an_image_goes_in_with_its_prompt(vlm: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    options = ("--max-new-tokens", 4, "--json")
    one = generate(vlm, "What?", "--image", tmp_path / "red.png", *options)
    two = generate(vlm, "What?", *["--image", tmp_path / "red.png"] * 2, *options)
    assert (one.exit_code, two.exit_code) == (0, 0), one.stderr + two.stderr
    tokens = [json.loads(run.stdout)["stats"]["prompt_tokens"] for run in (one, two)]
    assert tokens[1] - tokens[0] == 256  # the tower's patches


def test_json_is_one_object_and_nothing_else(scripted: Scripted) -> None:
    words = ("--json", "--compare", "--speculate", "--seed", 7)
    run = generate(scripted("QUICK fox"), PROMPT, *words)
    assert run.exit_code == 0, run.stderr
    values = json.loads(run.stdout)
    assert values["text"] == "QUICK fox"
    assert (values["seed"], values["finish_reason"]) == (7, "eos")
    assert "".join(piece["text"] for piece in values["pieces"]) == "QUICK fox"
    assert values["stats"]["by_drafter"]["prompt_lookup"]["accepted"] > 0
    compared = values["compare"]
    assert compared["identical"] is True
    assert compared["runs"] == len(compared["ratios"]) == 2
    assert values["compare"]["plain"]["stats"]["steps"] == 9
    assert run.stderr == ""


def test_compare_shows_both_speeds_and_that_sampled_texts_are_identical(vlm: Path) -> None:
    run = generate(
        vlm, "abc abc", "--compare", "--temperature", 1, "--seed", 3, "--max-new-tokens", 20
    )
    assert run.exit_code == 0, run.stderr
    for line in ("with drafts", "plain", "of 2 runs each, in turns", "identical texts: 20 tokens"):
        assert line in run.stderr


def test_compare_exits_1_and_names_the_token_where_texts_differ(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_really = Engine.generate

    def generate_wrongly(self: Engine, *args: object, **options: object) -> object:
        result = generate_really(self, *args, **options)  # type: ignore[call-overload]
        return replace(result, tokens=(*result.tokens[:3], 5, *result.tokens[4:]))

    monkeypatch.setattr(Engine, "generate", generate_wrongly)
    run = generate(scripted("QUICK fox"), PROMPT, "--compare")
    assert run.exit_code == 1
    assert f"first at token 3, with drafts {8 + ord('C')}, plain 5" in run.stderr


def test_the_same_seed_gives_the_same_text_without_speculation(vlm: Path) -> None:
    options = ("--temperature", 1, "--top-p", 0.9, "--seed", 5, "--max-new-tokens", 12, "--json")
    runs = [generate(vlm, "abc abc", *options, *more) for more in ((), ("--no-speculate",))]
    tokens = [json.loads(run.stdout)["tokens"] for run in runs]
    assert tokens[0] == tokens[1]
    assert json.loads(runs[1].stdout)["stats"]["by_drafter"] == {}


def test_the_prompt_may_come_from_stdin_or_a_file(scripted: Scripted, tmp_path: Path) -> None:
    folder = scripted("QUICK fox")
    (tmp_path / "prompt.txt").write_text(f"{PROMPT}\n")
    assert generate(folder, "-", text=f"{PROMPT}\n").stdout == "QUICK fox\n"
    assert generate(folder, f"@{tmp_path}/prompt.txt").stdout == "QUICK fox\n"
    (tmp_path / "of_windows.txt").write_bytes("\ufeffthe quick brown fox\r\n".encode())
    assert read_prompt(f"@{tmp_path}/of_windows.txt") == "the quick brown fox"


def test_stop_ends_the_text_before_the_string(scripted: Scripted) -> None:
    run = generate(scripted("QUICK fox"), PROMPT, "--stop", "zzz", "--stop", "K f")
    assert run.stdout == "QUIC\n"
    assert "ended by stop" in run.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("/no/such/model", "hello"), "/no/such/model"),
        (("MODEL", "hello", "--set", "decode.max_node=3"), "Did you mean decode.max_nodes"),
        (("MODEL", "hello", "--config", "plian"), "No config file 'plian'"),
        (("MODEL", "hello", "--drafter", "nobody"), "expected none, or one or several"),
        (("MODEL", "hello", "--top-p", 0), "top_p=0.0: expected"),
        (("MODEL", "hello", "--image", "/no/such.png"), "such.png"),
        (("MODEL", "@/no/such.txt"), "cannot read '/no/such.txt': No such file"),
        (("MODEL", "hello", "--compare", "--no-speculate"), "nothing to compare"),
        (("MODEL", ""), "empty"),
    ],
)
def test_a_mistake_is_one_paragraph_and_exit_code_2(
    vlm: Path, words: tuple[str, ...], told: str
) -> None:
    run = generate(*(vlm if word == "MODEL" else word for word in words))
    assert run.exit_code == 2
    assert told in run.stderr
    assert run.stderr.count("\n") == 1 and "Traceback" not in run.stderr
    assert run.stdout == ""


def test_a_bar_shows_on_a_terminal_how_far_a_long_prompt_is_read(scripted: Scripted) -> None:
    chunks = ("--set", "decode.prefill_chunk=8")
    folder = scripted("fox")
    shown = generate(folder, PROMPT, *chunks, env=TERMINAL)
    assert shown.exit_code == 0, shown.stderr
    assert "Reading the prompt" in shown.stderr and "8/" in shown.stderr
    piped = generate(folder, PROMPT, *chunks)
    assert piped.stdout == "fox\n" and "Reading" not in piped.stderr


def test_a_file_longer_than_the_context_is_refused_with_a_way_out(
    vlm: Path, tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text("word " * 70_000)
    run = generate(vlm, f"@{tmp_path}/long.txt")
    assert run.exit_code == 2
    assert "tokens: the model's context holds" in run.stderr
    assert "--set model.context=" in run.stderr and run.stderr.count("\n") == 1


def test_control_sequences_reach_a_file_but_never_a_terminal(scripted: Scripted) -> None:
    said = "[red]\x1b\x9bJ\r\u202e\x07"
    folder = scripted(said)
    assert generate(folder, PROMPT).stdout == said + "\n"
    shown = generate(folder, PROMPT, env={**TERMINAL, "NO_COLOR": "1"}).stdout
    assert shown == "[red]\\x1b\\x9bJ\\x0d\\u202e\\x07\n"


def test_an_interrupt_leaves_what_there_is(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, calls = Row.take_pieces, []

    def interrupted(self: Row) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return take(self)

    monkeypatch.setattr(Row, "take_pieces", interrupted)
    folder = scripted("QUICK fox")
    run = generate(folder, PROMPT, "--no-speculate", "--seed", 7)
    assert (run.exit_code, run.stdout) == (130, "QUI\n")
    assert "Interrupted after 4 tokens · seed 7" in run.stderr
    calls.clear()
    run = generate(folder, PROMPT, "--no-speculate", "--seed", 7, "--json")
    values = json.loads(run.stdout)
    assert (run.exit_code, values["text"], values["finish_reason"]) == (130, "QUIC", "interrupted")


def drafted(run: Result, drafter: str = "prompt_lookup") -> tuple[int, int]:
    """(drafted tokens that were accepted, prompt tokens)"""
    assert run.exit_code == 0, run.stderr
    stats = json.loads(run.stdout)["stats"]
    return stats["by_drafter"].get(drafter, {"accepted": 0})["accepted"], stats["prompt_tokens"]


def test_a_passage_goes_into_the_prompt_and_a_draft_text_beside_it(
    scripted: Scripted, tmp_path: Path
) -> None:
    folder, notes = scripted("QUICK fox"), tmp_path / "notes.txt"
    notes.write_text("A QUICK fox.")
    words = ("what?", "--json", "--speculate", "--compare")
    alone = drafted(generate(folder, *words))
    inside = drafted(generate(folder, *words, "--passage", notes))
    beside = drafted(generate(folder, *words, "--draft-text", notes))
    assert alone[0] == 0 < min(inside[0], beside[0])
    assert inside[1] > alone[1] == beside[1]
    missing = generate(folder, "what?", "--passage", tmp_path / "none.txt")
    assert missing.exit_code == 2 and "no such file" in missing.stderr


@reads_pdf
def test_a_page_of_a_pdf_is_an_image_drafted_from_its_text_layer(vlm: Path, tmp_path: Path) -> None:
    path = tmp_path / "two.pdf"
    path.write_bytes(pdf("First page", "Second one"))
    options = ("--max-new-tokens", 4, "--json", "--compare")
    alone = drafted(generate(vlm, "What?", *options))
    one = drafted(generate(vlm, "What?", "--pdf", path, *options))
    both = drafted(generate(vlm, "What?", "--pdf", path, "--page", 2, "--page", 1, *options))
    assert one[1] - alone[1] == both[1] - one[1] == 256, "the tower's patches, no text"
    assert "expected 1 .. 2" in generate(vlm, "What?", "--pdf", path, "--page", 3).stderr
    assert "--page without --pdf" in generate(vlm, "What?", "--page", 3).stderr


def test_a_datastore_drafts_what_its_documents_say(scripted: Scripted, tmp_path: Path) -> None:
    folder, notes, store = scripted("QUICK fox"), tmp_path / "notes.txt", tmp_path / "notes.store"
    notes.write_text("See what? QUICK fox; what?QUICK fox")
    built = CliRunner().invoke(
        app, ["index", "build", str(store), str(notes), "--model", str(folder)]
    )
    assert built.exit_code == 0, built.stderr
    words = ("--drafter", "retrieval", "--set", f"drafter.retrieval.datastores=[{store}]")
    run = generate(folder, "what?", *words, "--json", "--speculate", "--compare")
    assert drafted(run, "retrieval")[0] > 4 and json.loads(run.stdout)["compare"]["identical"]
    refused = generate(folder, "what?", *words[:2], "--set", "drafter.retrieval.datastores=[none]")
    assert refused.exit_code == 2 and "no datastore here" in refused.stderr


def test_a_comparison_is_not_drafted_from_its_own_warm_up(scripted: Scripted) -> None:
    words = ("--drafter", "retrieval", "--json", "--speculate", "--compare")
    run = generate(scripted("QUICK fox"), "what?", *words)
    assert drafted(run, "retrieval")[0] == 0, "nothing was said before"
