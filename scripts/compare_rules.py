"""How much each verification rule accepts, on synthetic pairs of target and drafter.

    python scripts/compare_rules.py --out build/rules.json

A pair is a target's logits (normal, standard deviation 2.5, 1000 tokens) and a drafter's: the same
plus normal noise of standard deviation sigma. No models: this compares rules, not drafters. Where
randomness is left after the exact part (acceptance given the draft) it is drawn; `se` is the
largest standard error in the table.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mmspec.bench.harness import write_report
from mmspec.bench.machine import this_machine
from mmspec.drafters.draw import draw_level
from mmspec.noise import DRAFT_STREAM, Place, gumbel
from mmspec.verify import Nodes, Weigh
from mmspec.verify.block import weigh as weigh_block
from mmspec.verify.rejection import weigh as weigh_rejection

VOCAB, SPREAD, SIGMAS, DEPTH = 1000, 2.5, (0.3, 0.7, 1.2, 2.0), 4


@dataclass(frozen=True)
class Pair:
    """One place: what target and drafter say."""

    target: Tensor  # (vocab,) logits
    drafter: Tensor  # (vocab,) logits
    place: int

    @property
    def p(self) -> Tensor:
        return torch.softmax(self.target, 0)

    @property
    def q(self) -> Tensor:
        return torch.softmax(self.drafter, 0)

    def drawn(self, k: int) -> list[int]:
        """`k` children without replacement, with noise of their own."""
        place = Place(0, 0, self.place, DRAFT_STREAM)
        return draw_level(self.drafter.unsqueeze(0), k, [place]).tokens[0].tolist()


def pairs(sigma: float, count: int, first: int = 0) -> list[Pair]:
    made = []
    for place in range(first, first + count):
        generator = torch.Generator().manual_seed(place)
        target, noise = torch.randn(2, VOCAB, generator=generator, dtype=torch.float64)
        made.append(Pair(SPREAD * target, SPREAD * target + sigma * noise, place))
    return made


# The probability that one of a node's k children is accepted


def coupled(pair: Pair, k: int) -> float:
    noise = gumbel(0, pair.place, VOCAB)
    children = (pair.drafter + noise).topk(k).indices
    return float(((pair.target + noise).argmax() == children).any())


def coupled_without_common_noise(pair: Pair, k: int) -> float:
    return float(pair.p[pair.q.topk(k).indices].sum())


def recursive(pair: Pair, k: int) -> float:
    """Exact given the drawn children; with one child it is speculative sampling."""
    chances = weighed(weigh_rejection, [pair], [pair.drawn(k)])[0]
    return float(1.0 - (1.0 - chances).prod())


def overlap(pair: Pair, k: int) -> float:
    """Speculative sampling with its draw integrated: no rule for one child can accept more."""
    return float(torch.minimum(pair.p, pair.q).sum())


NODES: tuple[tuple[str, int, Callable[[Pair, int], float]], ...] = (
    ("coupled, 1 child", 1, coupled),
    ("speculative, 1 child", 1, overlap),
    ("coupled, 4 children", 4, coupled),
    ("recursive, 4 children", 4, recursive),
    ("coupled, top 4 of q (no common noise)", 4, coupled_without_common_noise),
)


# Expected accepted tokens of a drawn chain


def coupled_chain(chain: Sequence[Pair]) -> float:
    met = [coupled(pair, 1) for pair in chain]
    return float(sum(all(met[: n + 1]) for n in range(len(met))))


def speculative_chain(chain: Sequence[Pair]) -> float:
    """The draws of different places are independent here, so the overlaps multiply."""
    rates = torch.tensor([overlap(pair, 1) for pair in chain])
    return float(rates.cumprod(0).sum())


def block_chain(chain: Sequence[Pair]) -> float:
    drafted = [pair.drawn(1) for pair in chain]
    chances = weighed(weigh_block, [*chain, chain[-1]], [*drafted, []])[:-1, 0]
    uniforms = torch.rand(len(chain), generator=torch.Generator().manual_seed(chain[0].place))
    kept = (uniforms < chances).nonzero()
    return float(kept.max() + 1 if len(kept) else 0)


def weighed(weigh: Weigh, pairs: Sequence[Pair], drafted: Sequence[Sequence[int]]) -> Tensor:
    """(nodes, most children): the chances of what was drafted at each place."""
    target, q = (torch.stack([getattr(pair, name) for pair in pairs]) for name in ("target", "q"))
    return weigh(Nodes(target, drafted, q)).chances


CHAINS: tuple[tuple[str, Callable[[Sequence[Pair]], float]], ...] = (
    ("coupled", coupled_chain),
    ("speculative", speculative_chain),
    ("block", block_chain),
)


def measure(trials: int) -> dict[str, dict[str, tuple[float, float]]]:
    """rule -> sigma -> (mean, standard error)."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for sigma in SIGMAS:
        singles = pairs(sigma, trials)
        for name, k, rate in NODES:
            values = torch.tensor([rate(pair, k) for pair in singles])
            found.setdefault(name, {})[str(sigma)] = mean_and_error(values)
        chains = [pairs(sigma, DEPTH, DEPTH * n) for n in range(trials)]
        for name, length in CHAINS:
            values = torch.tensor([length(chain) for chain in chains])
            found.setdefault(f"{name}, chain of {DEPTH}", {})[str(sigma)] = mean_and_error(values)
    return found


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=4000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments.trials)
    error = max(error for row in found.values() for _, error in row.values())
    title = f"accepted: per node, and tokens of a chain ({arguments.trials} trials, se {error:.3f})"
    table = Table("rule", *(f"sigma {sigma}" for sigma in SIGMAS), title=title)
    for name, row in found.items():
        table.add_row(name, *(f"{mean:.3f}" for mean, _ in row.values()))
    Console().print(table)
    if arguments.out:
        machine = this_machine(threads=torch.get_num_threads())
        write_report(arguments.out, machine, {"rules": found})


if __name__ == "__main__":
    main()
