"""Long texts from a folder, cut to stretches of tokens."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mmspec.errors import InputError


def read_texts(folder: Path) -> list[str]:
    """Of .txt files the whole, of .jsonl files a text a line: all its strings.

    Raises InputError for a folder without either.
    """
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))]
    for path in sorted(folder.glob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        texts += ["\n".join(_strings(json.loads(line))) for line in lines]
    if not texts:
        raise InputError(f"{folder}: got no .txt and no .jsonl file, expected texts in them")
    return texts


def stretches(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int, count: int
) -> Iterator[list[int]]:
    """`count` stretches of `length` tokens, each from the beginning of a text; texts are joined
    until they are long enough. Where they do not suffice, further stretches are the same texts in
    another order."""
    tokens = [tokenizer(text + "\n")["input_ids"] for text in texts]
    for first in range(len(tokens)):
        ids: list[int] = []
        for text in tokens[first:] + tokens[:first]:
            ids += text
            if len(ids) >= length and count:
                yield ids[:length]
                ids, count = [], count - 1


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
