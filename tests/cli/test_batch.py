"""`mmspec batch`: on the bundled model, whose answers are seldom right and always the same."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pdfs import pdf, reads_pdf
from PIL import Image
from typer.testing import CliRunner, Result

import mmspec
from mmspec.batch.run import run_batch as real_run_batch
from mmspec.batch.run import task_seed
from mmspec.cli import app

OPTIONS = ("--max-new-tokens", 6, "--temperature", 1)


def batch(*words: object, code: int = 0) -> Result:
    run = CliRunner().invoke(app, ["batch", *map(str, words)], env={"NO_COLOR": "1"})
    assert run.exit_code == code, run.output
    return run


def answers(path: Path) -> dict[str, dict[str, object]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({line["id"] for line in lines}) == len(lines)
    return {line["id"]: line for line in lines}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    texts = ("Repeat: abcabc", "Repeat: a much longer text than that", "Hm?", "Repeat: xyz xyz")
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": i, "prompt": t}) + "\n" for i, t in enumerate(texts)))
    return path


def test_every_answer_is_the_one_that_its_request_gets_alone(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run = batch("tiny-vlm", prompts, "--out", out, *OPTIONS, "--seed", 3)
    assert "4 answered" in run.stderr and "a step" in run.stderr
    cut_off = [line for line in answers(out).values() if line["finish_reason"] == "length"]
    assert cut_off and f"{len(cut_off)} ended by length" in run.stderr
    engine = mmspec.load("tiny-vlm", drafter="none")
    for name, line in answers(out).items():
        prompt = json.loads(prompts.read_text().splitlines()[int(name)])["prompt"]
        seed = task_seed(3, name)
        alone = engine.generate(prompt, max_new_tokens=6, temperature=1, seed=seed)
        assert (line["text"], line["seed"]) == (alone.text, seed)
        assert line["finish_reason"] == alone.finish_reason


def test_a_record_s_own_options_win_and_new_ones_are_a_new_question(tmp_path: Path) -> None:
    path, out, engine = tmp_path / "p.jsonl", tmp_path / "out.jsonl", mmspec.load("tiny-vlm")
    common = {"max_new_tokens": 6, "temperature": 1, "seed": 0}
    own = [{"max_new_tokens": 9, "seed": 5, "system": "Be brief."}, {"temperature": 0}, {}]

    def write() -> None:
        records = [{"id": i, "prompt": "Repeat: xyz", **said} for i, said in enumerate(own)]
        path.write_text("\n".join(map(json.dumps, records)))

    write()
    batch("tiny-vlm", path, "--out", out, *OPTIONS)
    for name, line in answers(out).items():
        asked = {**common, "seed": task_seed(0, name), **own[int(name)]}
        alone = engine.generate("Repeat: xyz", **asked)
        assert (line["text"], line["seed"]) == (alone.text, asked["seed"])
    first = answers(out)
    own[1]["top_k"] = "few"
    write()
    told = batch("tiny-vlm", path, "--out", out, *OPTIONS, code=1).stderr
    assert "0 answered · 2 before · 1 failed" in told and f"{path}, line 2: top_k='few'" in told
    own[1] = {"max_new_tokens": 2}
    write()
    assert "1 answered · 2 before" in batch("tiny-vlm", path, "--out", out, *OPTIONS).stderr
    again = answers(out)
    assert again["1"]["new_tokens"] == 2 and {**first, "1": again["1"]} == again


def test_a_batch_file_of_openai_is_answered_in_its_form_and_gone_on_with(tmp_path: Path) -> None:
    path, out = tmp_path / "requests.jsonl", tmp_path / "out.jsonl"
    asked = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Repeat: xyz"}]}
    bodies: list[dict[str, object]] = [asked, {**asked, "seed": -1}, {**asked, "temperature": "1"}]

    def write() -> None:
        told = {"method": "POST", "url": "/v1/chat/completions"}
        lines = [{"custom_id": f"a{i}", **told, "body": body} for i, body in enumerate(bodies)]
        path.write_text(
            "\n".join(map(json.dumps, [*lines, {"custom_id": 4, "url": "", "body": 0}]))
        )

    write()
    told = batch("tiny-vlm", path, "--out", out, *OPTIONS, code=1).stderr
    assert "2 answered · 2 failed" in told and "a2: temperature: got '1'; expected a number" in told
    assert f"{path}, line 4: custom_id=4: expected a text" in told
    first, engine = answers(out), mmspec.load("tiny-vlm")
    for name, seed in (("a0", task_seed(0, "a0")), ("a1", 2**64 - 1)):
        response: dict[str, Any] = first[name]["response"]  # type: ignore[assignment]
        alone = engine.generate("Repeat: xyz", max_new_tokens=6, temperature=1, seed=seed)
        assert response["body"]["choices"][0]["message"]["content"] == alone.text
        assert (response["status_code"], response["body"]["model"]) == (200, "tiny-vlm")
    refused: dict[str, Any] = first["a2"]["response"]  # type: ignore[assignment]
    assert (refused["status_code"], first["a2"]["error"]) == (400, None)
    assert refused["body"]["error"]["param"] == "temperature"
    nameless: dict[str, Any] = first.pop(f"{path}#4")["response"]  # type: ignore[assignment]
    assert nameless["status_code"] == 400
    bodies[2]["temperature"] = 0
    write()
    told = batch("tiny-vlm", path, "--out", out, *OPTIONS, code=1).stderr
    assert "1 answered · 2 before · 1 failed" in told
    again = answers(out)
    del again[f"{path}#4"]
    assert {**first, "a2": again["a2"]} == again


def test_where_all_is_answered_no_model_is_loaded(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    batch("tiny-vlm", prompts, "--out", out, *OPTIONS)
    monkeypatch.setattr(mmspec, "load", None)
    assert "0 answered · 4 before" in batch("tiny-vlm", prompts, "--out", out, *OPTIONS).stderr


def test_one_broken_document_costs_no_other_and_is_tried_again(tmp_path: Path) -> None:
    folder, out = tmp_path / "docs", tmp_path / "out.jsonl"
    folder.mkdir()
    Image.new("RGB", (20, 20), "red").save(folder / "red.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "fox.txt").write_text("The quick fox.")
    command = ("tiny-vlm", folder, "--out", out, "--prompt", "What is it?", *OPTIONS)
    run = batch(*command, code=1)
    assert "2 answered · 1 failed" in run.stderr and "broken.png" in run.stderr
    found = answers(out)
    assert "truncated or damaged" in str(found[str(folder / "broken.png")]["error"])
    Image.new("RGB", (20, 20), "blue").save(folder / "broken.png")
    assert "1 answered · 2 before" in batch(*command).stderr
    again = answers(out)
    assert "text" in again.pop(str(folder / "broken.png"))
    assert again.items() <= found.items()


def test_answers_that_are_written_beside_the_documents_are_no_documents(tmp_path: Path) -> None:
    (tmp_path / "fox.txt").write_text("The quick fox.")
    out = tmp_path / "answers.jsonl"
    command = ("tiny-vlm", tmp_path, "--out", out, "--prompt", "What is it?", *OPTIONS)
    plain = batch(*command, "--drafter", "none")
    assert "6 tokens · 1.00 a step" in plain.stderr, "the first comes with the prompt"
    before = out.read_text()
    assert "0 answered · 1 before" in batch(*command).stderr
    assert out.read_text() == before


def test_a_line_that_was_put_before_others_shifts_no_answer(tmp_path: Path) -> None:
    """Without ids of their own lines are known by their numbers."""
    prompts, out, whole = (tmp_path / name for name in ("p.txt", "out.jsonl", "whole.jsonl"))
    prompts.write_text("abc abc\nxyz xyz\n")
    batch("tiny-vlm", prompts, "--out", out, *OPTIONS)
    prompts.write_text("def def\nabc abc\nxyz xyz\n")
    assert "3 answered" in batch("tiny-vlm", prompts, "--out", out, *OPTIONS).stderr
    assert "0 answered · 3 before" in batch("tiny-vlm", prompts, "--out", out, *OPTIONS).stderr
    batch("tiny-vlm", prompts, "--out", whole, *OPTIONS)
    assert answers(out) == answers(whole) and len(out.read_text().splitlines()) == 3


def test_what_fails_is_named_once(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"id": "own"}\n{"text"\n{"id": "own", "prompt": "a"}\n')
    told = batch("tiny-vlm", prompts, "--out", tmp_path / "out.jsonl", code=1).stderr.splitlines()
    for number, why in enumerate(("got", "is not JSON", "the id 'own' was there before"), start=1):
        beginning = f"{prompts}, line {number}: {why}"
        assert any(line.startswith(beginning) for line in told), told
    prompts.write_text('{"id": "own", "text": "a"}\n' * 2)
    asked = ("--prompt", "What?", "--max-new-tokens", 1)
    told = batch("tiny-vlm", prompts, "--out", tmp_path / "d.jsonl", *asked, code=1).stderr
    assert f"{prompts}, line 2: the id 'own' was there before" in told


def test_what_fails_now_is_not_answered_as_it_was(tmp_path: Path) -> None:
    prompts, out = tmp_path / "p.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "abc abc"}\n')
    batch("tiny-vlm", prompts, "--out", out, *OPTIONS)
    prompts.write_text('{"prompt": "abc abc", "image": "none.png"}\n')
    assert "1 failed" in batch("tiny-vlm", prompts, "--out", out, *OPTIONS, code=1).stderr
    (line,) = out.read_text().splitlines()
    assert "none.png" in json.loads(line)["error"]


def test_an_interrupted_run_goes_on(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    batch("tiny-vlm", prompts, "--out", whole, *OPTIONS)

    def interrupted(*args: object, on_progress: object, **options: object) -> object:
        def stop(tally: object) -> None:
            on_progress(tally)  # type: ignore[operator]
            raise KeyboardInterrupt

        return real_run_batch(*args, on_progress=stop, **options)  # type: ignore[arg-type]

    command = ("tiny-vlm", prompts, "--out", out, *OPTIONS, "--rows", 1)
    with monkeypatch.context() as patched:
        patched.setattr("mmspec.batch.run_batch", interrupted)
        assert f"1 are in {out}; run the same" in batch(*command, code=130).stderr
    assert len(answers(out)) == 1
    assert "3 answered · 1 before" in batch(*command).stderr
    assert {k: v["text"] for k, v in answers(out).items()} == {
        k: v["text"] for k, v in answers(whole).items()
    }
    refused = batch("tiny-vlm", prompts, "--out", out, "--max-new-tokens", 7, code=2)
    assert "another model, prompt or settings" in refused.stderr


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_answers(tmp_path: Path) -> None:
    prompts, whole, out = (tmp_path / name for name in ("p.jsonl", "whole.jsonl", "out.jsonl"))
    prompts.write_text(
        "".join(json.dumps({"id": i, "prompt": f"Repeat: {i} {i}"}) + "\n" for i in range(40))
    )
    batch("tiny-vlm", prompts, "--out", whole, "--max-new-tokens", 20)
    code = "from mmspec.cli import main; main()"
    command = [sys.executable, "-c", code, "batch", "tiny-vlm", prompts, "--out", out]
    command += ["--max-new-tokens", "20", "--rows", "2"]
    for wanted in (5, 15, 25):
        run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not out.exists() or out.read_bytes().count(b"\n") < wanted:
            assert run.poll() is None
            time.sleep(0.05)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    subprocess.run(command, check=True)
    assert {k: v["text"] for k, v in answers(out).items()} == {
        k: v["text"] for k, v in answers(whole).items()
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temperature", -1], "temperature=-1"),
        (["--prompt", "@nowhere.txt"], "cannot read 'nowhere.txt'"),
        (["--drafter", "promt_lookup"], "expected none, or one"),
    ],
)
def test_a_mistake_in_the_command_is_told_before_anything_is_done(
    prompts: Path, tmp_path: Path, words: list[object], message: str
) -> None:
    run = batch("tiny-vlm", prompts, "--out", tmp_path / "out.jsonl", *words, code=2)
    assert message in run.stderr


@reads_pdf
def test_pages_of_a_pdf_are_answered_one_by_one_and_gone_on_with(tmp_path: Path) -> None:
    scan, out = tmp_path / "scan.pdf", tmp_path / "out.jsonl"
    scan.write_bytes(pdf("first page", "second page"))
    asked = (scan, "--pages", "--prompt", "Transcribe.", "--max-new-tokens", 3)
    batch("nano-vlm", *asked, "--out", out)
    whole = out.read_text().splitlines(keepends=True)
    assert set(answers(out)) == {f"{scan}#1", f"{scan}#2"}
    out.write_text(whole[0])
    run = batch("nano-vlm", *asked, "--out", out)
    assert "1 answered · 1 before" in run.stderr
    assert out.read_text().splitlines(keepends=True) == whole
    batch("nano-vlm", *asked[:1], *asked[2:], "--out", out, code=2)  # its text: another run


@pytest.mark.skipif(not find_spec("llguidance"), reason="needs the extra 'guided'")
def test_answers_follow_a_schema(tmp_path: Path) -> None:
    form, out = tmp_path / "form.json", tmp_path / "out.jsonl"
    form.write_text(json.dumps({"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}))
    (tmp_path / "p.txt").write_text("One.\nAnd another one, longer.\n")
    command = (tmp_path / "p.txt", "--out", out, "--max-new-tokens", 90, "--schema", form)
    batch("nano-vlm", *command)
    texts = [str(line["text"]) for line in answers(out).values()]
    assert len(texts) == 2 and all(set(json.loads(text)) <= {"a", "b"} for text in texts)
    form.write_text("[]")
    assert "expected a JSON schema's object" in batch("nano-vlm", *command, code=2).stderr
    form.write_text('{"type": "number"}')
    assert "another model, prompt or settings" in batch("nano-vlm", *command, code=2).stderr
