"""What the controller makes of one drafter and of two, by a clock of fixed costs.

    python scripts/simulate_pairs.py --rounds 3 --task "quoting, 4k"

Decodes the bundled model's tasks (three prompts each, as `mmspec bench tiny-vlm` does) with prompt
lookup, with its Medusa heads, and with both. Texts and accepted drafts are the model's own; what
steps and proposals take is assumed (`scripts/simulated.py`), so that each run shows the
same. An engine decodes all tasks in their order, each of them in so many rounds.
"""

import argparse
from collections import Counter

import torch
from rich.console import Console
from rich.table import Table
from simulated import TINY_VLM, SimulatedController

import mmspec
from mmspec.bench.loops import loop_start
from mmspec.bench.suites import bundled_tasks, chosen_tasks, fitted
from mmspec.engine import Engine

NAMES = ("prompt_lookup", "medusa", "prompt_lookup+medusa")
_ROOM = 32_000  # tokens of a prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-prompts", type=int, default=3)
    parser.add_argument("--task", action="append", default=[], help="its name's beginning; more")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    heads = ["drafter.medusa.path=tiny-vlm/medusa"]
    loaded = mmspec.load("tiny-vlm", overrides=[f"drafter.name={NAMES[-1]}", *heads])
    assert loaded.inputs is not None
    drafters = {drafter.name: drafter for drafter in loaded.drafters}
    engines = {}
    for name in NAMES:
        chosen, controller = [drafters[n] for n in name.split("+")], SimulatedController(TINY_VLM)
        engine = Engine(loaded.target, loaded.inputs, chosen, controller=controller)
        engines[name] = engine, controller
    table = Table("task", "drafter", "of plain's speed, by round", "tokens", "nodes", "asked")
    for task in chosen_tasks(bundled_tasks(arguments.num_prompts), arguments.task):
        cases = []
        for question in task.questions:
            fit = fitted(question, loaded.inputs, _ROOM)
            assert fit is not None
            plain = loaded.generate(
                fit.prompt,
                temperature=0.0,
                max_new_tokens=task.max_new_tokens,
                speculate=False,
                seed=0,
            )
            cases.append((fit.prompt, plain.tokens[: loop_start(plain.tokens)]))
        for name, (engine, controller) in engines.items():
            ratios, asked = list[float](), Counter[str]()
            steps = tokens = nodes = 0
            for _ in range(arguments.rounds):
                clock_s, plain_s = controller.clock_s, controller.plain_s
                for prompt, text in cases:
                    result = engine.generate(
                        prompt, temperature=0.0, max_new_tokens=len(text), seed=0, reuse=False
                    )
                    assert tuple(result.tokens) == tuple(text)
                    choices = result.stats.choices
                    asked.update(choices.asked)
                    steps += result.stats.steps
                    tokens += result.stats.new_tokens - 1
                    nodes += sum(n * count for n, count in choices.budgets.items())
                ratios.append((controller.plain_s - plain_s) / (controller.clock_s - clock_s))
            table.add_row(
                task.name,
                name,
                " ".join(f"{ratio:.2f}" for ratio in ratios),
                f"{tokens / steps:.2f} a step",
                f"{nodes / steps:.1f}",
                ", ".join(f"{who} {n / steps:.0%}" for who, n in asked.items()),
            )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
