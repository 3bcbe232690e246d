"""Small datastores, and a search of every place to compare them with."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mmspec.inputs.text_tokens import TextTokens
from mmspec.retrieval.corpus import Document
from mmspec.retrieval.datastore import Datastore
from mmspec.retrieval.writer import SEGMENT_TOKENS, DatastoreWriter

TOKENIZER, VOCAB = "tokenizer-a", 50


def documents(texts: Iterable[Sequence[int]], *, prefix: str = "d") -> list[Document]:
    return [Document(f"{prefix}{n}", f"{prefix}{n}.txt", text) for n, text in enumerate(texts)]


def add(
    folder: Path,
    given: Iterable[Document],
    *,
    vocab_size: int = VOCAB,
    segment_tokens: int = SEGMENT_TOKENS,
) -> Datastore:
    """Adds documents to a datastore, new or not, in one commit."""
    with DatastoreWriter.create(folder, tokenizer=TOKENIZER, vocab_size=vocab_size) as writer:
        writer.begin(segment_tokens=segment_tokens)
        for document in given:
            writer.append(document)
        writer.commit()
    return Datastore.open(folder)


def write_store(
    folder: Path,
    texts: Iterable[Sequence[int]],
    *,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int | None = None,
) -> Path:
    """A datastore of texts for a target with this tokenizer; one that is there gets them too."""
    tokens = TextTokens(tokenizer)
    with DatastoreWriter.create(
        folder, tokenizer=tokens.hash(), vocab_size=vocab_size or tokens.vocab_size
    ) as writer:
        writer.begin()
        for document in documents(texts, prefix=f"d{writer.manifest.generation}-"):
            writer.append(document)
        writer.commit()
    return folder


def searched(texts: Iterable[Sequence[int]], query: Sequence[int], max_match: int) -> list[tuple]:
    """(length, text, index) of the longest ends of `query` before a token, place by place."""
    best, places = 0, []
    for number, text in enumerate(texts):
        for index in range(1, len(text)):
            length = 0
            while (
                length < min(index, len(query), max_match)
                and text[index - 1 - length] == query[-1 - length]
                and 0 <= query[-1 - length] < VOCAB
            ):
                length += 1
            if text[index] < 0 or length == 0 or length < best:
                continue
            if length > best:
                best, places = length, []
            places.append((length, number, index))
    return places
