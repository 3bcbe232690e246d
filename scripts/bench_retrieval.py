"""What the datastore costs: building, opening, look-ups by tokens and by hidden states.

    OMP_NUM_THREADS=1 python scripts/bench_retrieval.py --out build/retrieval.json
    python scripts/bench_retrieval.py --tokens 1000000       # quicker

The corpus is drawn: tokens by a power law over a vocabulary of 49,152, with passages of 300 tokens
copied to other places (15% of it), in documents of 2,000 tokens. Hidden states are drawn too:
2,000 clusters along 64 of 256 directions, and noise. Look-ups are single ones, in this thread; time
is the thread's CPU time, and of builds the wall time too. Nothing is cold: files were just written.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from mmspec.bench.harness import write_report
from mmspec.bench.machine import this_machine
from mmspec.draft_guide import DraftGuide
from mmspec.drafters.retrieval import Retrieval
from mmspec.drafters.retrieval.drafter import BoundRetrieval
from mmspec.drafters.retrieval.store import OpenStore
from mmspec.drafters.retrieval.suffix import SuffixSource
from mmspec.retrieval import Datastore, DatastoreWriter, Document, KeyBatch
from mmspec.retrieval.dense_builder import DenseBuilder
from mmspec.retrieval.dense_index import DenseIndex
from mmspec.state import Placement, Prefill, Prompt

VOCAB, DOCUMENT_TOKENS, LOOK_UPS, ROUNDS = 49_152, 2_000, 2_000, 7
DIM, DIRECTIONS, CLUSTERS, QUERIES, NEAREST = 256, 64, 2_000, 500, 10
BARS = {
    "build_s": 60.0,
    "build_peak_gb": 1.5,
    "open_ms": 100.0,
    "longest_us": 30.0,
    "dense_query_ms": 0.3,
    "dense_recall_at_10": 0.95,
}


def corpus(count: int) -> np.ndarray:
    """(count,) tokens."""
    rng = np.random.default_rng(0)
    tokens = np.minimum(rng.zipf(1.2, count), VOCAB - 1).astype(np.uint16)
    for _ in range(count // 2000):
        source, place = rng.integers(0, count - 300, 2)
        tokens[place : place + 300] = tokens[source : source + 300]
    return tokens


def states(count: int, seed: int) -> np.ndarray:
    """(count, DIM)"""
    fixed, rng = np.random.default_rng(1), np.random.default_rng(seed)
    directions = fixed.normal(size=(DIRECTIONS, DIM)).astype(np.float32)
    centres = fixed.normal(size=(CLUSTERS, DIRECTIONS)).astype(np.float32)
    latent = centres[rng.integers(0, CLUSTERS, count)]
    latent += 0.6 * rng.normal(size=(count, DIRECTIONS)).astype(np.float32)
    return latent @ directions + rng.normal(size=(count, DIM)).astype(np.float32)


def build(folder: Path, tokens: np.ndarray) -> dict[str, float]:
    start, spent = time.perf_counter(), time.process_time()
    before = peak_gb()
    with DatastoreWriter.create(folder, tokenizer="drawn", vocab_size=VOCAB) as writer:
        writer.begin(inputs="drawn")
        for number, at in enumerate(range(0, len(tokens), DOCUMENT_TOKENS)):
            writer.append(Document(str(number), "", tokens[at : at + DOCUMENT_TOKENS]))
        writer.commit()
    return {
        "build_s": time.perf_counter() - start,
        "build_cpu_s": time.process_time() - spent,
        "build_peak_gb": peak_gb(),
        "peak_before_gb": before,  # of the interpreter, torch and the drawn corpus
        "bytes_per_token": sum(path.stat().st_size for path in folder.iterdir()) / len(tokens),
    }


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def per_call(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Seconds a call, once a round."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.thread_time()
        for call in calls:
            call()
        rounds.append((time.thread_time() - start) / len(calls))
    return rounds


def look_ups(store: Datastore, tokens: np.ndarray) -> dict[str, list[float]]:
    """Texts of 64 tokens: half out of the corpus (long matches), half drawn (short ones)."""
    rng = np.random.default_rng(2)
    texts = []
    for number in range(LOOK_UPS):
        at = int(rng.integers(64, len(tokens)))
        drawn = np.minimum(rng.zipf(1.2, 64), VOCAB - 1)
        texts.append((tokens[at - 64 : at] if number % 2 else drawn).tolist())
    return {
        "longest_us": per_call([lambda t=t: store.longest(t) for t in texts]),
        "continuations_us": per_call([lambda t=t: store.continuations(t) for t in texts[:500]]),
        **proposals(store, texts[:500]),
    }


def proposals(store: Datastore, texts: Sequence[list[int]]) -> dict[str, list[float]]:
    """What the drafter takes for one row and step: the look-up, the trie, a tree of up to 64
    nodes; and what it takes to see at a request's start that the folder has not changed."""
    opened, settings = OpenStore(store), Retrieval(sources=["suffix"])
    drafter = BoundRetrieval(
        [SuffixSource([opened], settings.limits)],
        settings.limits,
        max_depth=settings.max_depth,
        min_confidence=settings.min_confidence,
    )
    guide = DraftGuide(is_greedy=True, seed=0, sample=0, prompt_length=64)
    prefill = Prefill(torch.zeros(1), Placement(0, (0,)))
    sessions = [drafter.start(Prompt(torch.tensor(text)), prefill, guide) for text in texts]
    pairs = list(zip(sessions, texts, strict=True))
    return {
        "propose_us": per_call([lambda s=s, t=t: s.propose(t, 64) for s, t in pairs]),
        "refresh_us": per_call([opened.refresh] * 500),
    }


def dense(folder: Path, count: int) -> dict[str, Any]:
    keys, queries = states(count, 3), states(QUERIES, 4)
    start = time.perf_counter()
    with DatastoreWriter.open(folder) as writer:
        parts = (slice(at, at + 10_000) for at in range(0, count, 10_000))
        batches = (KeyBatch(np.arange(count)[part], keys[part]) for part in parts)
        writer.add_keys(batches, dim=DIM, fingerprint="drawn", expected=count)
    built = time.perf_counter() - start
    store = Datastore.open(folder)
    exact = DenseBuilder(DIM, exact_below=10**12)
    exact.add(np.arange(count), keys)
    path = folder.parent / "exact.faiss"
    with path.open("wb") as file:
        exact.write(file)
    flat = DenseIndex.open(path, dim=DIM)
    found = store.nearest(queries, limit=NEAREST).positions
    wanted = flat.search(queries, limit=NEAREST).positions
    recall = np.mean([len({*a} & {*b}) for a, b in zip(found, wanted, strict=True)]) / NEAREST
    single = [lambda n=n: store.nearest(queries[n : n + 1], limit=32) for n in range(200)]
    batch = [lambda n=n: store.nearest(queries[8 * n : 8 * n + 8], limit=32) for n in range(40)]
    return {
        "dense_build_s": built,
        "dense_recall_at_10": float(recall),
        "dense_query_ms": per_call(single),
        "dense_batch_of_8_ms": per_call(batch),
        "dense_exact_query_ms": per_call(
            [lambda n=n: flat.search(queries[n : n + 1], limit=32) for n in range(20)]
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/retrieval.json"))
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--keys", type=int, default=100_000)
    arguments = parser.parse_args()
    machine = this_machine(threads=torch.get_num_threads())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "store"
        tokens = corpus(arguments.tokens)
        figures: dict[str, Any] = build(folder, tokens)
        opened = per_call([lambda: Datastore.open(folder)])
        figures["open_ms"] = [1e3 * seconds for seconds in opened]
        opened = per_call([lambda: Datastore.open(folder, verify=False)])
        figures["open_unverified_ms"] = [1e3 * seconds for seconds in opened]
        store = Datastore.open(folder)
        for name, seconds in look_ups(store, tokens).items():
            figures[name] = [1e6 * one for one in seconds]
        for name, value in dense(folder, arguments.keys).items():
            figures[name] = [1e3 * s for s in value] if isinstance(value, list) else value
    report = {
        "numpy": np.__version__,
        "faiss": version("faiss-cpu"),
        "tokens": arguments.tokens,
        "keys": [arguments.keys, DIM],
        "rounds": ROUNDS,
        "bars": BARS,
        "figures": figures,
    }
    table = Table("figure", "median", "least", "most", "bar")
    for name, value in figures.items():
        values = value if isinstance(value, list) else [value]
        shown = [f"{f(values):.3g}" for f in (statistics.median, min, max)]
        table.add_row(name, *shown, str(BARS.get(name, "")))
    write_report(arguments.out, machine, report)
    Console().print(table, f"written to {arguments.out}")


if __name__ == "__main__":
    main()
