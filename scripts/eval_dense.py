"""Where a dense index earns its keep: what is accepted of drafts found by tokens, and by states.

    OMP_NUM_THREADS=1 python scripts/eval_dense.py --out build/dense.json
    python scripts/eval_dense.py --text-model FOLDER     # real language too
    python scripts/eval_dense.py --quick                 # a small part, in seconds
    python scripts/eval_dense.py --rounds 7              # and how quick each is

Three kinds of work, all greedy, on samples that the datastore does not hold:

(a) quoting: what is asked for stands in the prompt word for word;
(b) other form: it stands there in other words or another format;
(c) pictures: forms of one kind, read from the picture alone, whose texts differ. No n-gram of the
    answer is in the prompt.

The datastore holds answers to such questions about other samples, with the states of answering
them; for real language the passages too, with the states of reading them. Acceptance length (1 +
accepted drafts / verifications) does not depend on the clock; it is measured with every step
drafted for. Speed is decoding alone, after the prompt, with the controller that users have; rounds
of all methods in turn, the median of each.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import mmspec
from mmspec.bench.harness import write_report
from mmspec.bench.machine import this_machine
from mmspec.cli.console import quiet_transformers
from mmspec.drafters.retrieval import Retrieval
from mmspec.engine import Engine
from mmspec.indexing import MixedReader, PromptedReader, TextReader, answer_lead, collect_keys
from mmspec.inputs.text_tokens import TextTokens
from mmspec.requests import Request
from mmspec.retrieval import DatastoreWriter, Document
from mmspec.training.tiny.data import (
    NOWHERE,
    Sample,
    caption,
    chart,
    count,
    extract,
    passage,
    quote,
    receipt,
)

METHODS: dict[str, tuple[str, ...]] = {
    "suffix": ("suffix",),
    "dense": ("dense",),
    "suffix+dense": ("suffix", "dense"),
    "online": ("online",),
    "online+suffix": ("online", "suffix"),
    "online+suffix+dense": ("online", "suffix", "dense"),
}
TIMED = ("suffix", "dense", "suffix+dense")
INSTRUCTIONS = {
    "quote a passage": "Repeat this text word for word:\n\n{}",
    "in other words": "Rewrite this text in other words:\n\n{}",
    "as a list": "Write this text as a list of bullet points:\n\n{}",
    "as JSON": "Write the facts of this text as JSON:\n\n{}",
}
KINDS = {
    "quote an entry": "(a)",
    "quote a line": "(a)",
    "quote a passage": "(a)",
    "field as JSON": "(b)",
    "in other words": "(b)",
    "as a list": "(b)",
    "as JSON": "(b)",
    "receipts": "(c)",
    "charts": "(c)",
    "shapes by region": "(c)",
    "shapes, counted": "(c)",
}


@dataclass(frozen=True)
class Suite:
    """Questions, and the datastore that is there when they are asked."""

    name: str
    kind: str  # (a), (b) or (c)
    questions: Sequence[Request]
    records: Sequence[tuple[Request, str]]  # answered before
    texts: Sequence[str] = ()


def bundled_suites(num_records: int, num_questions: int, seed: int) -> list[Suite]:
    """The bundled model's own tasks, of words that its training never showed."""

    def samples(name: str, make: Callable[[Random], Sample]) -> Suite:
        rng = Random(f"dense/{name}/{seed}")
        made = [make(rng) for _ in range(num_records + num_questions)]
        asked = [_request(sample) for sample in made]
        answered = [(one, sample.answer) for one, sample in zip(asked, made, strict=True)]
        return Suite(name, KINDS[name], asked[num_records:], answered[:num_records])

    return [
        samples("quote an entry", lambda rng: quote(rng, True, 600)),
        samples("quote a line", lambda rng: passage(rng, True, 600)),
        samples("field as JSON", lambda rng: extract(rng, True, 600)),
        samples("receipts", lambda rng: _without_layer(receipt(rng, True))),
        samples("charts", lambda rng: chart(rng, True)),
        samples("shapes by region", lambda rng: caption(rng, True)),
        samples("shapes, counted", lambda rng: count(rng, True)),
    ]


def _without_layer(sample: Sample) -> Sample:
    """A receipt to be read from the picture alone."""
    nowhere = (NOWHERE,) * len(sample.text_source)
    return replace(sample, task="scan", prompt_text="Transcribe the page.", text_source=nowhere)


def _request(sample: Sample) -> Request:
    return Request(
        sample.prompt_text,
        images=() if sample.image is None else sample.image,
        max_new_tokens=len(sample.answer) + 40,
        temperature=0.0,
        seed=0,
    )


def text_suites(
    engine: Engine,
    num_records: int,
    num_questions: int,
    seed: int,
    *,
    names: Sequence[str] = tuple(INSTRUCTIONS),
    answer_tokens: int = 120,
) -> list[Suite]:
    """Passages of Python's own help; what the datastore holds is the model's own earlier answers
    about other passages, and all passages."""
    rng = Random(f"dense/text/{seed}")
    passages = rng.sample(_passages(), num_records + num_questions)
    suites = []
    for name in names:
        instruction = INSTRUCTIONS[name]
        asked = [
            Request(instruction.format(text), max_new_tokens=answer_tokens, temperature=0.0, seed=0)
            for text in passages
        ]
        earlier = asked[:num_records]
        answers = [engine.generate(one).text for one in track(earlier, f"Answers: {name}")]
        records = list(zip(earlier, answers, strict=True))
        suites.append(Suite(name, KINDS[name], asked[num_records:], records, passages))
    return suites


def _passages() -> list[str]:
    from pydoc_data.topics import topics

    blocks = (
        " ".join(block.split()) for name in sorted(topics) for block in topics[name].split("\n\n")
    )
    return sorted({block for block in blocks if 300 <= len(block) <= 600 and block[0].isupper()})


def write_datastore(folder: Path, suite: Suite, engine: Engine) -> dict[str, int]:
    """Answers as documents behind their prompts, texts as documents; both with their states."""
    assert engine.inputs is not None and engine.tokenizer is not None
    inputs, target, tokens = engine.inputs, engine.target, TextTokens(engine.tokenizer)
    prompts = {}
    with DatastoreWriter.create(
        folder, tokenizer=tokens.hash(), vocab_size=tokens.vocab_size
    ) as writer:
        writer.begin()
        for number, (request, answer) in enumerate(suite.records):
            prompts[f"record {number}"] = request
            writer.append(Document(f"record {number}", "", tokens.encode(answer)))
        for number, text in enumerate(suite.texts):
            writer.append(Document(f"text {number}", "", tokens.encode(text)))
        writer.commit()
    tap = target.last_tap

    def prompt_of(name: Any) -> Any:
        request = prompts[name.id]
        return inputs.encode(request.prompt, images=request.images)

    reader = MixedReader(
        PromptedReader(target, prompt_of, tap=tap),
        TextReader(target, tap=tap, lead=answer_lead(inputs)),
        has_prompt=lambda name: name.id in prompts,
    )
    manifest = collect_keys(folder, target, reader)
    assert manifest.dense is not None
    return {
        "documents": manifest.num_documents,
        "tokens": manifest.num_tokens,
        "hidden_states": manifest.dense.num_keys,
        "bytes": manifest.num_bytes,
        "bytes_of_dense_index": manifest.dense.file.num_bytes,
    }


def engine_of(base: Engine, folder: Path, sources: Sequence[str], controller: str) -> Engine:
    drafter = Retrieval([folder], sources=sources)
    return Engine(base.target, base.inputs, [drafter], controller=controller)


def acceptance(base: Engine, folder: Path, suite: Suite) -> dict[str, float]:
    """Tokens a verification, over all answers, by method."""
    lengths = {}
    for method, sources in METHODS.items():
        engine = engine_of(base, folder, sources, "fixed")
        stats = [engine.generate(question).stats for question in suite.questions]
        accepted = sum(n * c for one in stats for n, c in one.accepted_lengths.items())
        lengths[method] = 1.0 + accepted / max(sum(one.steps for one in stats), 1)
    return lengths


def speed(base: Engine, folder: Path, suite: Suite, rounds: int) -> dict[str, dict[str, float]]:
    """Decoded tokens a second by method: the median round, and the rounds' ratios to plain."""
    engines = {method: engine_of(base, folder, METHODS[method], "auto") for method in TIMED}
    rates: dict[str, list[float]] = {"plain": [], **{method: [] for method in TIMED}}
    for _ in range(rounds + 1):  # the first teaches the controllers what things cost
        for method in rates:
            engine = engines.get(method, base)
            seconds = tokens = 0.0
            for question in suite.questions:
                stats = engine.generate(question, speculate=method != "plain" and "auto").stats
                seconds += stats.times.decode_s
                tokens += stats.new_tokens - 1
            rates[method].append(tokens / seconds)
    measured = {method: values[1:] for method, values in rates.items()}
    return {
        method: {
            "tokens_per_s": statistics.median(values),
            "ratio": statistics.median(ratios := _ratios(values, measured["plain"])),
            "least_ratio": min(ratios),
            "most_ratio": max(ratios),
        }
        for method, values in measured.items()
    }


def _ratios(values: Sequence[float], plain: Sequence[float]) -> list[float]:
    return [value / base for value, base in zip(values, plain, strict=True)]


def evaluate(base: Engine, suite: Suite, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "store"
        store = write_datastore(folder, suite, base)
        figures: dict[str, Any] = {
            "kind": suite.kind,
            "questions": len(suite.questions),
            "datastore": store,
            "acceptance_length": acceptance(base, folder, suite),
        }
        lengths = figures["acceptance_length"]
        figures["both_to_suffix"] = lengths["suffix+dense"] / lengths["suffix"]
        if rounds:
            figures["speed"] = speed(base, folder, suite, rounds)
        return figures


def table(report: dict[str, Any]) -> Table:
    columns = ("", "kind", *METHODS, "both / suffix")
    shown = Table(*columns, title="Acceptance length: tokens a verification")
    for name, figures in report["suites"].items():
        lengths = figures["acceptance_length"]
        cells = [f"{lengths[method]:.2f}" for method in METHODS]
        shown.add_row(name, figures["kind"], *cells, f"{figures['both_to_suffix']:.2f}")
    return shown


def speed_table(report: dict[str, Any]) -> Table:
    shown = Table("", "kind", "plain", *TIMED, title="Decoded tokens a second (ratio to plain)")
    for name, figures in report["suites"].items():
        speeds = figures["speed"]
        cells = [f"{speeds[m]['tokens_per_s']:.0f} ({speeds[m]['ratio']:.2f})" for m in TIMED]
        plain = f"{speeds['plain']['tokens_per_s']:.0f}"
        shown.add_row(name, figures["kind"], plain, *cells)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/dense.json"))
    parser.add_argument("--text-model", help="a chat model's folder: real language too")
    parser.add_argument("--records", type=int, default=150, help="answers in each datastore")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--text-records", type=int, default=40)
    parser.add_argument("--text-questions", type=int, default=10)
    parser.add_argument("--answer-tokens", type=int, default=120, help="of the text model")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="SUITE")
    parser.add_argument("--rounds", type=int, default=0, help="timed ones; 0: no speeds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="8 records and 2 questions each")
    options = parser.parse_args()
    if options.quick:
        options.records = options.text_records = 8
        options.questions = options.text_questions = 2
    torch.set_num_threads(options.threads)
    machine = this_machine(threads=options.threads)
    quiet_transformers()
    console = Console(width=160 if not sys.stdout.isatty() else None)
    report: dict[str, Any] = {"suites": {}}
    work: list[tuple[Engine, list[Suite]]] = []
    bundled = mmspec.load("tiny-vlm", drafter="none")
    suites = bundled_suites(options.records, options.questions, options.seed)
    work.append((bundled, [suite for suite in suites if suite.name in options.only]))
    if options.text_model:
        engine = mmspec.load(options.text_model, drafter="prompt_lookup")
        suites = text_suites(
            engine,
            options.text_records,
            options.text_questions,
            options.seed,
            names=[name for name in INSTRUCTIONS if name in options.only],
            answer_tokens=options.answer_tokens,
        )
        work.append((engine, suites))
    for engine, suites in work:
        for suite in track(suites, "Evaluating", console=Console(stderr=True)):
            report["suites"][suite.name] = evaluate(engine, suite, options.rounds)
            write_report(options.out, machine, report)
    console.print(table(report))
    if options.rounds:
        console.print(speed_table(report))
    console.print(f"written to {options.out}")


if __name__ == "__main__":
    main()
