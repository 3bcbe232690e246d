import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from mmspec.cli import app
from mmspec.state import Prompt
from mmspec.target import Target

QUICK = ("--pairs", 2, "--max-new-tokens", 12, "--num-prompts", 2, "--force")


def bench(*words: object) -> Result:
    arguments = ["bench", *map(str, words)]
    return CliRunner().invoke(app, arguments, env={"NO_COLOR": "1", "COLUMNS": "120"})


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    texts = ["abc abc abd abc ab", "What is this? What is"]
    file.write_text("\n".join(json.dumps({"prompt": text, "task": "copying"}) for text in texts))
    return file


def test_what_was_measured_is_shown_where_it_cannot_be_written(
    vlm: Path, prompts: Path, tmp_path: Path
) -> None:
    options = ("--no-peers", "--drafter", "prompt_lookup", "--out", tmp_path)
    run = bench(vlm, "--prompts", prompts, *QUICK, *options)
    assert run.exit_code == 2
    assert "cannot be written" in run.stderr and "mmspec prompt_lookup" in run.stdout


def test_a_run_from_prompts_to_table_and_file(vlm: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "bench.json"
    wide = "wide: drafter.name=prompt_lookup drafter.prompt_lookup.min_match=1 decode.max_nodes=40"
    run = bench(
        vlm, "--prompts", prompts, *QUICK, "--out", out, "--drafter", "prompt_lookup",
        "--method", wide, "--draft-model", vlm, "--peer", "3-grams: prompt_lookup_num_tokens=7 "
        "max_matching_ngram_size=3",
    )  # fmt: skip
    assert run.exit_code == 0, run.stdout + run.stderr
    assert "✓ every text of mmspec is that of transformers" in run.stdout
    values = json.loads(out.read_text())
    assert {"commit", "command", "cpu", "cores", "threads", "load_before", "torch", "transformers",
            "model", "dtype", "pairs", "notes", "methods"} <= set(values)  # fmt: skip
    assert str(vlm.parent) not in out.read_text()  # names, not where they lie
    assert next(m for m in values["methods"] if m["draft_model"])["draft_model"] == vlm.name
    (task,) = values["tasks"]
    rows = {row["method"]: row for row in task["rows"]}
    assert list(rows) == [
        "transformers",
        "transformers lookup 5",
        "transformers lookup 10",
        "transformers lookup 20",
        "transformers assisted",
        "mmspec plain",
        "mmspec prompt_lookup",
        "mmspec wide",
        "transformers 3-grams",
    ]
    assert (task["task"], task["prompts"]) == ("copying", 2)
    for name, row in rows.items():
        assert row["refused"] is None and row["identical"] == 2, name
        assert len(row["totals"]) == 2
        assert {pair["tokens"] for pair in row["totals"]} == {task["new_tokens"]}
        assert row["totals"][0]["decode_wall_s"] > 0 and row["totals"][0]["end_to_end_cpu_s"] > 0
        assert set(row["versus"]) == {"transformers", "transformers' best lookup", "mmspec plain"}
    assert rows["transformers"]["versus"]["transformers"]["decode"]["values"] == [1.0, 1.0]
    assert rows["mmspec plain"]["acceptance_length"] == 1.0
    # A model that drafts for itself, greedily, is right every time.
    assert rows["transformers assisted"]["acceptance_length"] > 1.5


def test_what_a_peer_refuses_is_a_row_with_its_reason(vlm: Path, tmp_path: Path) -> None:
    """transformers' prompt lookup takes no static cache; a picture goes to the others."""
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    (tmp_path / "mine.jsonl").write_text('{"prompt": "What?", "image": "red.png"}')
    out = tmp_path / "bench.json"
    static = "static: prompt_lookup_num_tokens=5 cache_implementation=static"
    run = bench(
        vlm, "--prompts", tmp_path / "mine.jsonl", *QUICK, "--peer", static, "--out", out,
        "--drafter", "prompt_lookup",
    )  # fmt: skip
    assert run.exit_code == 0, run.stdout + run.stderr
    rows = {row["method"]: row for row in json.loads(out.read_text())["tasks"][0]["rows"]}
    assert rows["transformers static"]["refused"].startswith("ValueError: assisted generate is not")
    assert "refused: transformers static (prompts): ValueError: assisted" in run.stdout
    assert rows["mmspec prompt_lookup"]["identical"] == 1


def test_a_draft_model_with_another_tokenizer_gets_both(
    scripted: Callable[[str], Path], prompts: Path, tmp_path: Path
) -> None:
    """transformers' universal assisted generation: here a draft model with a few more tokens."""
    target, drafter = scripted("QUICK fox"), tmp_path / "drafter"
    model = AutoModelForCausalLM.from_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(target)
    tokenizer.add_tokens(["quick", "fox"])
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(drafter)
    tokenizer.save_pretrained(drafter)
    prompts.write_text('{"prompt": "QUICK fox; what?"}')
    out = tmp_path / "bench.json"
    run = bench(
        target, "--prompts", prompts, *QUICK, "--draft-model", drafter, "--out", out,
        "--drafter", "prompt_lookup",
    )  # fmt: skip
    assert run.exit_code == 0, run.stdout + run.stderr
    rows = {row["method"]: row for row in json.loads(out.read_text())["tasks"][0]["rows"]}
    assert rows["transformers assisted"]["refused"] is None
    assert rows["transformers assisted"]["identical"] == 1


def test_without_peers_the_reference_is_our_plain_decoding(vlm: Path, prompts: Path) -> None:
    run = bench(
        vlm, "--prompts", prompts, *QUICK, "--no-peers", "--json", "--drafter", "prompt_lookup"
    )
    assert run.exit_code == 0, run.stderr
    values = json.loads(run.stdout)
    assert values["reference"] == "mmspec plain"
    assert [r["method"] for r in values["tasks"][0]["rows"]] == [
        "mmspec plain",
        "mmspec prompt_lookup",
    ]


def test_a_wrong_text_of_ours_is_exit_code_1(
    vlm: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_mutants import commit_keeps_one_too_many

    commit_keeps_one_too_many(monkeypatch)
    lookup = "drafter.prompt_lookup.min_match=1 drafter.prompt_lookup.min_confidence=0"
    eager = f"eager: {lookup} speculate=true"
    unprobed = ("--set", "decode.probe=false")
    run = bench(vlm, "--prompts", prompts, *QUICK, "--method", eager, *unprobed)
    assert run.exit_code == 1, run.stdout + run.stderr
    assert "✗ mmspec eager: copying, prompt " in run.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "no prompts: give a folder of them with --data"),
        (("--suite", "data"), "--suite data: needs --data PATH"),
        (("--suite", "all"), "--suite all: expected one of bundled, data, file"),
        (("--data", "/no/such"), "no prompts found"),
        (("--prompts", "FILE", "--task", "maths"), "task 'maths': expected one of 'copying'"),
        (("--prompts", "FILE", "--drafter", "nobody"), "drafter 'nobody': expected one of"),
        (("--prompts", "FILE", "--method", "x: decode.max_node=3"), "Did you mean"),
        (("--prompts", "FILE", "--method", "x: model.dtype=float64"), "set model.* for all"),
        (("--prompts", "FILE", "--method", "plain: speculate=false"), "named twice: mmspec plain"),
    ],
)
def test_a_mistake_is_told_before_anything_is_measured(
    words: tuple[str, ...], told: str, vlm: Path, prompts: Path
) -> None:
    run = bench(vlm, *(prompts if word == "FILE" else word for word in words), "--force")
    assert run.exit_code == 2
    assert told in run.stderr
    assert run.stdout == ""


def test_a_busy_machine_is_refused_unless_forced(
    vlm: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (9.0, 9.0, 9.0))
    run = bench(vlm, "--prompts", prompts)
    assert run.exit_code == 2
    assert "load is 9.00" in run.stderr and "--force" in run.stderr
    run = bench(vlm, "--prompts", prompts, "--method", "x")  # what is wrong later, too, comes first
    assert "expected 'NAME: key=value" in run.stderr and "load" not in run.stderr


def test_a_shared_prefill_is_read_once(
    vlm: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    own = Target.prefill

    def counted(self: Target, prompt: Prompt, *args: Any, start: int = 0, **kwargs: Any) -> Any:
        lengths.append(prompt.num_tokens - start)
        return own(self, prompt, *args, start=start, **kwargs)

    monkeypatch.setattr(Target, "prefill", counted)
    run = bench(
        vlm, "--prompts", prompts, *QUICK, "--share-prefill", "--no-peers",
        "--method", "lookup: drafter.name=prompt_lookup",
        "--method", "known: drafter.name=retrieval", "--drafter", "prompt_lookup",
    )  # fmt: skip
    assert run.exit_code == 0, run.stdout + run.stderr
    # The probe of each engine, and each prompt for once; after that only a prompt's last token.
    assert sum(length > 1 for length in lengths[-20:]) == 0
