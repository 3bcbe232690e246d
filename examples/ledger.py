"""What the three examples share: a corpus, an embedding that needs no model, and the report.

The bundled model can quote an entry of a ledger; which entries it gets to see, retrieval decides.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mmspec.cli.render import Palette
from mmspec.training.tiny.documents import ledger_entries
from mmspec.training.tiny.words import Words

# The bundled model was taught ledgers without numbers or names above their parts.
PASSAGE_TEMPLATE = "{% for passage in passages %}{{ passage.text }}\n{% endfor %}{{ question }}"
_DIM = 8192
_WIDTH = 100  # columns


def ledger(num_chars: int = 20_000) -> dict[str, str]:
    """A text for each year: entries, one a line."""
    entries = list(ledger_entries(Words(Random("examples")), num_chars).values())
    size = -(-len(entries) // 4)
    years = [entries[start : start + size] for start in range(0, len(entries), size)]
    return {f"ledger-{2020 + n}.txt": "\n".join(lines) for n, lines in enumerate(years)}


def questions(texts: Mapping[str, str], count: int = 4) -> list[tuple[str, str]]:
    """Questions with their right answers."""
    lines = [line for text in texts.values() for line in text.splitlines()]
    chosen = Random("quotes").sample(lines, count)
    return [(f"Quote {line.partition(':')[0]}", line) for line in chosen]


def chunks(text: str, *, num_lines: int = 3) -> list[str]:
    """The splitter: some lines each."""
    lines = text.splitlines()
    return ["\n".join(lines[n : n + num_lines]) for n in range(0, len(lines), num_lines)]


class HashedWords:
    """TF-IDF over hashed words: the same vectors on every machine."""

    def __init__(self, corpus: Sequence[str]) -> None:
        seen = np.zeros(_DIM)
        for text in corpus:
            seen[list({_place(word) for word in _words(text)})] += 1
        self._weights = np.log((1 + len(corpus)) / (1 + seen))

    def embed(self, text: str) -> NDArray[np.float32]:
        """(dim,), of length 1."""
        vector = np.zeros(_DIM)
        for word in _words(text):
            vector[_place(word)] += 1
        vector *= self._weights
        return (vector / max(float(np.linalg.norm(vector)), 1e-9)).astype(np.float32)


class NearestChunks:
    """A FAISS index of chunks."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._words = HashedWords(texts)
        self._index = faiss.IndexFlatIP(_DIM)
        self._index.add(np.stack([self._words.embed(text) for text in texts]))

    def search(self, query: str, *, limit: int = 3) -> list[tuple[int, float]]:
        """(number of the chunk, similarity), the nearest first."""
        scores, numbers = self._index.search(self._words.embed(query)[None], limit)
        return list(zip(numbers[0].tolist(), scores[0].tolist(), strict=True))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _place(word: str) -> int:
    return zlib.crc32(word.encode()) % _DIM


class Report:
    """Answers as they come, then the figures of all."""

    def __init__(self, title: str) -> None:
        self._console = Console(highlight=False)
        terminal = self._console.is_terminal
        self._console.width = min(self._console.width, _WIDTH) if terminal else _WIDTH
        self._rows: list[tuple[str, bool, Mapping[str, Any]]] = []
        self._palette = Palette()
        self._console.print(Text.assemble(("mmspec", "bold"), f"  {title}"))

    def show(
        self,
        question: str,
        answer: str,
        right: str,
        sources: Sequence[str],
        stats: Mapping[str, Any],
    ) -> None:
        """`stats` is what the answer's metadata holds under "mmspec"."""
        answer, right = answer.strip(), right.strip()
        is_right = answer == right
        mark = ("✓ ", "green") if is_right else ("✗ ", "red")
        shares = [
            Text(f"■ {name} drafted {of['share']:.0%}", style=self._palette.colour(name))
            for name, of in stats["drafters"].items()
        ]
        figures = Text(f"{stats['tokens_per_step']:.1f} tokens a step  ", style="dim")
        body = Text("\n").join(
            [
                Text(f"retrieved from {', '.join(dict.fromkeys(sources))}", style="dim"),
                Text.assemble(mark, answer),
                Text("  ").join([figures, *shares]),
            ]
        )
        self._console.print(Panel(body, title=Text(question), title_align="left"))
        self._rows.append((question, is_right, stats))

    def close(self) -> None:
        table = Table("question", "right", box=None, padding=(0, 2), header_style="dim")
        table.add_column("tokens a step", justify="right")
        table.add_column("tokens a second", justify="right")
        for question, is_right, stats in self._rows:
            figures = f"{stats['tokens_per_step']:.1f}", f"{stats['tokens_per_second']:,.0f}"
            table.add_row(question, "yes" if is_right else "no", *figures)
        self._console.print(table)
