"""Linear layers at few rows: the model's own, mmspec's quick ones, and low-bit copies for drafts.

    python scripts/bench_linears.py --out build/linears.json
    python scripts/bench_linears.py --threads 1 2 --rounds 15
    python scripts/bench_linears.py --model FOLDER --text FILE

Every way is timed once a round, one after the other, over as many matrices of a shape as a model
would read between two uses of one, so that weights come from memory; ratios are within a round.
With one thread time is this thread's (another process does not count in, but takes bandwidth), with
more it is the wall's: such figures want a quiet machine. Of int8 every kernel is timed that this
torch has; a second table shows layers of the same states as one product beside one each.
With `--model` also what the copies cost in memory and how often they choose the token that the
model itself would choose after the same text, by greedy choice, and the milliseconds of a forward
of one node.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import mmspec
from mmspec.bench.harness import in_turns, write_report
from mmspec.bench.machine import this_machine
from mmspec.errors import ModelError
from mmspec.kv import KVCache
from mmspec.state import Placement, Prompt
from mmspec.target import Target
from mmspec.target.linears import _QuickLinear
from mmspec.target.lowbit import packer, packers
from mmspec.target.lowbit_layers import LowBitLayers
from mmspec.target.quantised import QuantisedLinears
from mmspec.tree import TokenTree

SHAPES = ((576, 576), (576, 1536), (1536, 576), (2048, 2048), (2048, 8192))  # (in, out)
GROUPS = (  # in, outs of layers that read the same states
    (576, (576, 192, 192)),
    (576, (1536, 1536)),
    (2048, (2048, 512, 512)),
    (2048, (8192, 8192)),
)
ROWS = (1, 2, 4, 8, 16)
Ways = dict[str, list[Callable[[Tensor], Tensor]]]
_BYTES = 96 * 2**20  # of float weights a round: more than a CPU's caches hold


def ways(ins: int, outs: int) -> Ways:
    """What multiplies, a list of matrices for each way."""
    layers = _layers(ins, (outs,), _count(ins * outs))
    found: Ways = {
        "F.linear": [partial(F.linear, weight=layer.weight) for (layer,) in layers],
        "quick": [_QuickLinear(layer, packed=True) for (layer,) in layers],
    }
    for bits in ("int8", "int4"):
        try:
            kinds = packers(bits, torch.device("cpu"))
        except ModelError:
            continue
        for kind in kinds:
            found[kind.__name__] = [kind(layer.weight) for (layer,) in layers]
    return found


def group_ways(ins: int, outs: tuple[int, ...]) -> Ways:
    """int8 layers of the same states: each by its own copy, and all by one."""
    groups = _layers(ins, outs, _count(ins * sum(outs)))
    pack = packer("int8", torch.device("cpu"))
    joint = [LowBitLayers(group, pack) for group in groups]
    alone = [[LowBitLayers([layer], pack) for layer in group] for group in groups]

    def each(rows: Tensor, group: list[LowBitLayers]) -> Tensor:
        return torch.cat([one(rows) for one in group], dim=-1)

    return {"one each": [partial(each, group=group) for group in alone], "one of all": list(joint)}


def _count(weights: int) -> int:
    return max(2, min(24, _BYTES // (4 * weights)))


def _layers(ins: int, outs: tuple[int, ...], count: int) -> list[list[nn.Linear]]:
    return [
        [nn.Linear(ins, size, bias=False).requires_grad_(False) for size in outs]
        for _ in range(count)
    ]


def measure(ways: Ways, ins: int, rows: int, *, rounds: int) -> dict[str, list[float]]:
    """Microseconds of one product, by way, a number a round."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    states = torch.randn(rows, ins)

    def one_us(name: str) -> float:
        start = clock()
        for multiply in ways[name]:
            multiply(states)
        return 1e6 * (clock() - start) / len(ways[name])

    return in_turns(list(ways), one_us, rounds=rounds)  # the first round packs


def copies(target: Target) -> dict[str, tuple[Target, int]]:
    """The target, and what drafts in its place with the memory that takes."""
    found = {"same": (target, 0)}
    for bits in ("int8", "int4"):
        for with_head in (True, False):
            copied = QuantisedLinears(target.model, bits, with_head=with_head)
            name = f"{bits}, {'head too' if with_head else 'head as it is'}"
            found[name] = target.variant(copied), copied.num_bytes
    return found


def agreement(targets: dict[str, Target], ids: list[int], count: int) -> dict[str, float]:
    """The share of the last `count` places in the text where each chooses the first one's token.
    One node a forward, as a draft is made: what int8 rounds depends on the rows together."""
    own, *_ = targets.values()
    same = dict.fromkeys(targets, 0)
    cache, placement = _prefilled(own, ids[:-count])
    for token in ids[-count:]:
        chosen = {
            name: target.score([TokenTree.root(token)], cache, [placement])[0].logits.argmax()
            for name, target in reversed(targets.items())  # the model's own keys are those kept
        }
        for name in targets:
            same[name] += int(chosen[name] == chosen[next(iter(targets))])
        cache.commit({placement.row: [0]})
    return {name: total / count for name, total in same.items()}


def node_ms(targets: dict[str, Target], ids: list[int], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of a forward of one node behind the text, a number a round."""
    cache, placement = _prefilled(next(iter(targets.values())), ids)

    def one_ms(name: str) -> float:
        start = time.thread_time()
        targets[name].score([TokenTree.root(ids[-1])], cache, [placement])
        return 1000 * (time.thread_time() - start)

    return in_turns(list(targets), one_ms, rounds=rounds)


def _prefilled(target: Target, ids: list[int]) -> tuple[KVCache, Placement]:
    cache = target.new_cache()
    row = cache.open(len(ids) + 1024)
    return cache, target.prefill(Prompt(torch.tensor(ids)), cache, row).placement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--model", help="folder, hub name or bundled name")
    parser.add_argument("--text", type=Path, help="what is read for the agreement")
    parser.add_argument("--context", type=int, default=1024, help="tokens of it, at most")
    parser.add_argument("--places", type=int, default=200, help="where agreement is looked at")
    parser.add_argument("--skip-shapes", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("build/linears.json"))
    arguments = parser.parse_args()
    console, report = Console(), dict[str, Any]()
    machine = this_machine(threads=max(arguments.threads))
    report["shapes"], report["groups"] = [], []
    for threads in [] if arguments.skip_shapes else arguments.threads:
        torch.set_num_threads(threads)
        shapes = [one for s in SHAPES for one in _measured(*s, ways(*s), arguments.rounds)]
        _print(console, "times as fast as F.linear", shapes)
        groups = [one for g in GROUPS for one in _measured(*g, group_ways(*g), arguments.rounds)]
        _print(console, "int8, times as fast as one each", groups)
        report["shapes"] += shapes
        report["groups"] += groups
    torch.set_num_threads(1)
    if arguments.model:
        report["model"] = _model(console, arguments)
    write_report(arguments.out, machine, report)
    console.print(f"written to {arguments.out}")


def _measured(ins: int, outs: int | tuple[int, ...], ways: Ways, rounds: int) -> Iterator[Any]:
    for rows in ROWS:
        samples = measure(ways, ins, rows, rounds=rounds)
        threads = torch.get_num_threads()
        yield {"in": ins, "out": outs, "rows": rows, "threads": threads, "samples_us": samples}


def _print(console: Console, title: str, kept: list[dict[str, Any]]) -> None:
    base, *others = kept[0]["samples_us"]
    title = f"{title}, {torch.get_num_threads()} threads"
    table = Table("in, out", "rows", f"{base} us", *others, title=title)
    for measured in kept:
        samples = measured["samples_us"]
        cells = [f"{statistics.median(samples[base]):.0f}"]
        for name in others:
            pairs = zip(samples[base], samples[name], strict=True)
            cells.append(f"{statistics.median(a / b for a, b in pairs):.2f} x")
        table.add_row(f"{measured['in']}, {measured['out']}", str(measured["rows"]), *cells)
    console.print(table)


def _model(console: Console, arguments: argparse.Namespace) -> dict[str, Any]:
    engine = mmspec.load(arguments.model, dtype="float32", drafter="none")
    text = arguments.text.read_text(encoding="utf-8")
    assert engine.tokenizer is not None, "agreement is read off a text"
    ids = engine.tokenizer(text).input_ids[: arguments.context]
    found = copies(engine.target)
    targets = {name: target for name, (target, _) in found.items()}
    agree = agreement(targets, ids, count=min(arguments.places, len(ids) // 2))
    spent = node_ms(targets, ids, arguments.rounds)
    table = Table("weights", "MB more", "agreement", "ms a node", "times as fast")
    for name, (_, size) in found.items():
        pairs = zip(spent["same"], spent[name], strict=True)
        table.add_row(
            name,
            f"{size / 1e6:.0f}",
            f"{agree[name]:.3f}",
            f"{statistics.median(spent[name]):.2f}",
            f"{statistics.median(a / b for a, b in pairs):.2f}",
        )
    console.print(table)
    return {
        "name": Path(arguments.model).name,
        "context": len(ids),
        "bytes": {name: size for name, (_, size) in found.items()},
        "agreement": agree,
        "node_ms": spent,
    }


if __name__ == "__main__":
    main()
