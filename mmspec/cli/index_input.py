"""What `mmspec index build` and `add` read: files, and with the target's eyes."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from mmspec.cli.console import EXIT_INTERRUPTED, mistake_text, quiet_transformers
from mmspec.cli.progress import Bar
from mmspec.errors import DatastoreError, InputError, ModelError
from mmspec.retrieval import DatastoreWriter, Document
from mmspec.words import counted

if TYPE_CHECKING:
    from mmspec.inputs.documents import TextDocument
    from mmspec.inputs.text_tokens import TextTokens


def fill(
    writer: DatastoreWriter,
    tokens: "TextTokens",
    files: Sequence[Path],
    field: str,
    *,
    done: int,
    skip_broken: bool,
    stderr: Console,
) -> None:
    """Adds what is not in yet, file by file, and commits: neither the `done` first ones, nor those
    that the datastore had before."""
    if not writer.is_adding:
        stderr.print("All of it is in already")
        return
    if done:
        stderr.print(f"Going on after {counted(done, 'document')}")
    broken: list[InputError] = []
    seen = set[str]()
    number = num_earlier = 0
    try:
        with Bar(stderr, "Reading files", total=len(files)) as bar:
            found = _each(files, field, broken if skip_broken else None, bar)
            for document in found:
                earlier = writer.earlier(document.id)
                if earlier is not None and earlier == tokens.encode(document.text):
                    num_earlier += 1
                    continue
                if earlier is not None or document.id in seen:
                    # Refused below. Nothing goes on from here, whatever mends that, and an
                    # unfinished add is in the way of deleting it, or of adding what is mended.
                    writer.begin(fresh=True)
                if document.id in seen:
                    raise DatastoreError(
                        f"the id {document.id!r} stands twice in what is added, again in "
                        f"{document.where or document.source}; give each document its own"
                    )
                seen.add(document.id)
                if number >= done:
                    encoded = tokens.encode(document.text)
                    writer.append(Document(document.id, document.source, encoded))
                number += 1
            bar.show(what="Sorting")
            writer.commit()
    except KeyboardInterrupt as error:
        stderr.print("Interrupted: run the same command again to go on.")
        raise typer.Exit(EXIT_INTERRUPTED) from error
    if num_earlier:
        were = "was" if num_earlier == 1 else "were"
        stderr.print(f"{counted(num_earlier, 'document')} {were} in already")
    if broken:
        stderr.print(f"Left out {len(broken)} that cannot be read:")
        for one in broken:
            stderr.print(mistake_text(one), soft_wrap=True)


def collect(store: Path, model: str, stderr: Console) -> None:
    """The target reads what it has not read yet."""
    import mmspec
    from mmspec.indexing import (
        MixedReader,
        PromptedReader,
        RecordPrompts,
        TextReader,
        answer_lead,
        collect_keys,
    )

    engine = mmspec.load(model, drafter="none")
    target, inputs = engine.target, engine.inputs
    assert inputs is not None  # its tokenizer made the tokens
    prompts, tap = RecordPrompts(inputs), target.last_tap
    reader = MixedReader(
        PromptedReader(target, prompts.prompt_of, tap=tap),
        TextReader(target, tap=tap, lead=answer_lead(inputs)),
        has_prompt=prompts.has_prompt,
    )
    try:
        with Bar(stderr, "Reading tokens") as bar:
            collect_keys(store, target, reader, on_progress=lambda d, of: bar.show(d, of=of))
    except KeyboardInterrupt as error:
        stderr.print("Interrupted: run the same command again to go on.")
        raise typer.Exit(EXIT_INTERRUPTED) from error


def _each(
    files: Sequence[Path], field: str, broken: list[InputError] | None, bar: Bar
) -> Iterator["TextDocument"]:
    """The documents that can be read; why others cannot joins `broken`. Raises InputError where
    that is None."""
    from mmspec.inputs.documents import read_documents

    for path in files:
        for document in read_documents(path, field=field):
            error = document.error
            if error is None:
                yield document
            elif broken is not None:
                broken.append(error)
            else:
                hint = "or leave out what cannot be read: --skip-broken"
                raise InputError(f"{error}; {hint}") from error
        bar.advance()


def tokens_of(model: str) -> "TextTokens":
    """A target's tokenizer, without its weights. Raises ModelError."""
    quiet_transformers()
    from mmspec.inputs.text_tokens import TextTokens
    from mmspec.target.load import load_processor, resolve_path

    path = resolve_path(model)
    processor = load_processor(path)
    if processor is None:
        raise ModelError(f"{path}: this folder has no tokenizer; name the target's folder: --model")
    return TextTokens(getattr(processor, "tokenizer", processor))


def described(files: Sequence[Path], field: str) -> str:
    """The same for the same files, as long as nobody has written to them."""
    digest = hashlib.sha256(field.encode())
    for path in files:
        stat = path.stat()
        digest.update(f"\0{path}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
    return digest.hexdigest()
