"""What a server gives its clients, by how many ask at once, with drafts and without.

    python scripts/bench_serving.py --model tiny-vlm --clients 1 4 8 --pairs 5

A server runs in this process; so many clients at a time ask it over HTTP, for streams. A question
is to quote an entry of a document, as the bundled model was trained to. Runs with drafts (the
automatic controller) and plain ones take turns, pair after pair; the texts must be the same. Told
are tokens a second of all clients together, and the time to the first token.
"""

import argparse
import json
import socket
import statistics
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
import uvicorn
from rich.console import Console
from rich.table import Table

import mmspec
from mmspec.bench.harness import write_report
from mmspec.bench.interval import spread
from mmspec.bench.machine import refuse_if_busy, this_machine
from mmspec.serving import ServerSettings, create_app
from mmspec.training.tiny.data import quote


class Answer(NamedTuple):
    """One client's."""

    text: str
    tokens: int
    first_s: float


def question(seed: int, num_chars: int) -> str:
    """A document, and which of its entries to quote."""
    return quote(Random(f"serving/{seed}"), held_out=True, num_chars=num_chars).prompt_text


def ask(address: str, text: str, *, speculate: bool, tokens: int) -> Answer:
    """One stream, read to its end."""
    body = {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
        "reuse": False,
        "speculate": "auto" if speculate else False,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    begun, first_s, said, used = time.perf_counter(), 0.0, "", 0
    with urllib.request.urlopen(request, timeout=600) as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[len(b"data: ") :])
            if not event["choices"]:
                used = event["usage"]["completion_tokens"]
                continue
            said += event["choices"][0]["delta"].get("content", "")
            first_s = first_s or time.perf_counter() - begun
    return Answer(said, used, first_s)


def run(
    address: str, questions: list[str], clients: int, *, speculate: bool, tokens: int
) -> tuple[list[Answer], float]:
    """All answers, and the seconds that they took together."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(
            pool.map(lambda q: ask(address, q, speculate=speculate, tokens=tokens), questions)
        )
    return answers, time.perf_counter() - begun


def measure(address: str, clients: int, options: argparse.Namespace) -> dict[str, Any]:
    """One number of clients: ratios of pairs, and both kinds' figures."""
    speeds: dict[bool, list[float]] = {True: [], False: []}
    firsts: dict[bool, list[float]] = {True: [], False: []}
    for pair in range(options.pairs + 1):  # the first one is for warming up
        asked = [question(1000 * pair + n, options.chars) for n in range(clients * options.rounds)]
        texts = {}
        for speculate in (pair % 2 == 0, pair % 2 == 1):
            answers, seconds = run(
                address, asked, clients, speculate=speculate, tokens=options.tokens
            )
            texts[speculate] = [answer.text for answer in answers]
            if pair:
                speeds[speculate].append(sum(answer.tokens for answer in answers) / seconds)
                firsts[speculate] += [answer.first_s for answer in answers]
        assert texts[True] == texts[False], "drafts changed a text"
    ratios = [drafted / plain for drafted, plain in zip(speeds[True], speeds[False], strict=True)]
    return {
        "clients": clients,
        "tokens_per_second": statistics.median(speeds[True]),
        "plain_tokens_per_second": statistics.median(speeds[False]),
        "ratio": asdict(spread(ratios)),
        "first_token_s": statistics.median(firsts[True]),
        "plain_first_token_s": statistics.median(firsts[False]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny-vlm")
    parser.add_argument("--drafter")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=2, help="questions of each client a run")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--chars", type=int, default=1000, help="of a question's document")
    parser.add_argument("--force", action="store_true", help="measure on a busy machine too")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine = this_machine(threads=torch.get_num_threads())
    if not options.force:
        refuse_if_busy(machine)
    engine = mmspec.load(options.model, drafter=options.drafter)
    app = create_app(engine, ServerSettings(name="model"))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        address = f"http://127.0.0.1:{sock.getsockname()[1]}"
        try:
            found = [measure(address, clients, options) for clients in options.clients]
        finally:
            server.should_exit = True
            thread.join()
    table = Table("clients", "tokens/s", "plain", "ratio", "first token", "plain")
    for row in found:
        table.add_row(
            str(row["clients"]),
            f"{row['tokens_per_second']:.0f}",
            f"{row['plain_tokens_per_second']:.0f}",
            "{median:.2f} [{low:.2f}, {high:.2f}]".format_map(row["ratio"]),
            f"{row['first_token_s']:.3f} s",
            f"{row['plain_first_token_s']:.3f} s",
        )
    Console().print(table)
    if options.out:
        write_report(options.out, machine, {"found": found})


if __name__ == "__main__":
    main()
