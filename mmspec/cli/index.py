"""`mmspec index`: a datastore of documents to draft from: build | add | delete | info | query."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from mmspec.cli.command import Command, Group
from mmspec.cli.console import (
    consoles,
    mistakes_told,
    printable,
    tell,
    write,
)
from mmspec.cli.index_input import collect, described, fill, tokens_of
from mmspec.cli.options import AsJson, option, switch
from mmspec.errors import DatastoreError
from mmspec.retrieval import Datastore, DatastoreWriter
from mmspec.retrieval.journal import read_journal
from mmspec.retrieval.manifest import Manifest, read_manifest
from mmspec.retrieval.places import Longest
from mmspec.retrieval.writer import SEGMENT_TOKENS
from mmspec.words import counted

index = typer.Typer(cls=Group, no_args_is_help=True, help="A datastore of documents to draft from.")

_Store = Annotated[Path, typer.Argument(metavar="STORE", help="The datastore's folder.")]
_Inputs = Annotated[
    list[str],
    typer.Argument(metavar="INPUTS...", help="Files, folders, globs: text, JSONL, HTML, PDF."),
]
_Field = Annotated[str, option("NAME", "The field of a JSONL line that holds its text.")]
_Model = Annotated[
    str | None, option("MODEL", "Whose tokenizer; by default the datastore's target.")
]
_Segment = Annotated[int, option("N", "Tokens that are sorted in one piece.")]
_Fresh = Annotated[bool, switch("--fresh", "Drop what an interrupted run has begun.")]
_Dense = Annotated[
    bool, switch("--dense", "The target reads them, to be found by its hidden states too.")
]
_SkipBroken = Annotated[
    bool, switch("--skip-broken", "Leave out what cannot be read, and say what that was.")
]


@index.command(cls=Command)
def build(
    store: _Store,
    inputs: _Inputs,
    model: Annotated[str, option("MODEL", "The target: a folder or a name.")],
    field: _Field = "text",
    segment_tokens: _Segment = SEGMENT_TOKENS,
    fresh: _Fresh = False,
    skip_broken: _SkipBroken = False,
    dense: _Dense = False,
) -> None:
    """Index documents in a new folder. Interrupted, the same command goes on where it was."""
    stdout, stderr = consoles()
    with mistakes_told(stderr):
        tokens = tokens_of(model)
        from mmspec.inputs.documents import find_documents

        writer = DatastoreWriter.create(
            store, tokenizer=tokens.hash(), vocab_size=tokens.vocab_size, target=model
        )
        with writer:
            files = find_documents(inputs)
            inputs_hash = described(files, field)
            if writer.manifest.generation and writer.manifest.inputs != inputs_hash:
                raise DatastoreError(
                    f"{store}: holds a finished datastore of other documents; expected a new "
                    "folder, or use `mmspec index add`"
                )
            done = writer.begin(inputs=inputs_hash, segment_tokens=segment_tokens, fresh=fresh)
            fill(writer, tokens, files, field, done=done, skip_broken=skip_broken, stderr=stderr)
        if dense:
            collect(store, model, stderr)
        tell(stdout, _summary(store, read_manifest(store)))


@index.command(cls=Command)
def add(
    store: _Store,
    inputs: _Inputs,
    model: _Model = None,
    field: _Field = "text",
    segment_tokens: _Segment = SEGMENT_TOKENS,
    fresh: _Fresh = False,
    skip_broken: _SkipBroken = False,
    dense: _Dense = False,
) -> None:
    """Add documents. What reads the datastore meanwhile goes on with what it has."""
    stdout, stderr = consoles()
    with mistakes_told(stderr):
        with DatastoreWriter.open(store) as writer:
            target = model or writer.manifest.target
            tokens = tokens_of(target)
            from mmspec.inputs.documents import find_documents

            writer.manifest.check_fit(store, tokenizer=tokens.hash(), vocab_size=tokens.vocab_size)
            files = find_documents(inputs)
            inputs_hash = described(files, field)
            done = writer.begin(inputs=inputs_hash, segment_tokens=segment_tokens, fresh=fresh)
            fill(writer, tokens, files, field, done=done, skip_broken=skip_broken, stderr=stderr)
        if dense or writer.manifest.dense is not None:
            collect(store, target, stderr)
        tell(stdout, _summary(store, read_manifest(store)))


@index.command(cls=Command)
def delete(
    store: _Store,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="As `info --documents` says.")],
    purge: Annotated[
        bool, switch("--purge", "Also take their tokens off the disk at once.")
    ] = False,
) -> None:
    """Delete documents: nothing finds them any more."""
    stdout, stderr = consoles()
    with mistakes_told(stderr), DatastoreWriter.open(store) as writer:
        writer.delete(ids)
        if purge:
            writer.purge()
        tell(stdout, _summary(store, writer.manifest))


@index.command(cls=Command)
def info(
    store: _Store,
    verify: Annotated[bool, switch("--verify", "Check all files, counts and the order.")] = False,
    documents: Annotated[
        bool, switch("--documents", "List the documents' ids and sources.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What a datastore holds, and whether it is sound. Exit code 2: it is not."""
    stdout, stderr = consoles()
    with mistakes_told(stderr):
        journal = read_journal(store)
        if journal is not None and not journal.is_empty:
            stderr.print("An unfinished build or add is waiting: run it again to finish it.")
        opened = Datastore.open(store, verify=False)
        if verify:
            with stderr.status("Checking"):
                opened.check_integrity()
        names = [name for one in opened.segments for name in one.names] if documents else []
        if as_json:
            values = {**asdict(opened.manifest), **_counts(opened.manifest)}
            if documents:
                values["documents"] = [name._asdict() for name in names]
            typer.echo(json.dumps(values))
            return
        tell(stdout, _summary(store, opened.manifest))
        if verify:
            stdout.print(Text("✓ checksums, counts and order are right", style="green"))
        for name in names:
            write(stdout, f"{name.id}\t{name.source}\n")


@index.command(cls=Command)
def query(
    store: _Store,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What was said so far.")],
    model: _Model = None,
    limit: Annotated[int, option("N", "At most so many places.", min=1)] = 8,
    length: Annotated[int, option("N", "Tokens of each continuation.", min=1)] = 24,
    min_match: Annotated[int, option("N", "Tokens that have to agree.", min=1)] = 1,
    as_json: AsJson = False,
) -> None:
    """Show what followed the longest end of TEXT that the documents hold."""
    stdout, stderr = consoles()
    with mistakes_told(stderr):
        opened = Datastore.open(store)
        tokens = tokens_of(model or opened.manifest.target)
        opened.manifest.check_fit(store, tokenizer=tokens.hash(), vocab_size=None)
        # A blank at the end is often a part of the next word's token.
        ends = (tokens.encode(end) for end in (text, text.rstrip() or text))
        longest = max((opened.longest(end, max_match=64) for end in ends), key=_length)
        found = []
        if longest.length >= min_match:
            for place in opened.places(longest, limit=limit):
                found.append(
                    {
                        "document": opened.document_of(place).id,
                        "match": tokens.decode(opened.tokens_before(place, longest.length)),
                        "continuation": tokens.decode(opened.tokens_from(place, length)),
                    }
                )
        if as_json:
            head = {"match_length": longest.length, "num_places": longest.num_places}
            typer.echo(json.dumps({**head, "places": found}))
            return
        if not found:
            stdout.print("No place agrees with the end of this text.")
            return
        places, agreeing = longest.num_places, counted(longest.length, "token")
        verb = "agrees" if longest.length == 1 else "agree"
        stdout.print(Text(f"{agreeing} {verb} in {counted(places, 'place')}", style="dim"))
        for one in found:
            stdout.print(
                Text.assemble(
                    (_one_line(one["match"]), "dim"),
                    (_one_line(one["continuation"]), "green"),
                    (f"  [{printable(one['document'])}]", "dim"),
                ),
                soft_wrap=True,
            )


def _length(longest: Longest) -> int:
    return longest.length


def _one_line(text: str) -> str:
    return printable(text.replace("\n", "⏎"))


def _counts(manifest: Manifest) -> dict[str, int]:
    return {
        "num_documents": manifest.num_documents,
        "num_tokens": manifest.num_tokens,
        "num_bytes": manifest.num_bytes,
        "num_keys": manifest.dense.num_keys if manifest.dense else 0,
    }


def _summary(store: Path, manifest: Manifest) -> Text:
    counts = _counts(manifest)
    parts = [
        f"{store}: {counted(counts['num_documents'], 'document')}",
        counted(counts["num_tokens"], "token"),
        counted(counts["num_keys"], "hidden state"),
        counted(len(manifest.segments), "segment"),
        f"{counts['num_bytes'] / 1e6:,.1f} MB",
        f"for {manifest.target or 'an unnamed target'}",
    ]
    return Text(printable(" · ".join(parts)))
