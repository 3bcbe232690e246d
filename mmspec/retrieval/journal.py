"""The journal of an unfinished build or add: what is safe on the disk, and where to go on."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mmspec.errors import DatastoreError
from mmspec.retrieval.corpus import Checkpoint
from mmspec.retrieval.files import write_atomically
from mmspec.retrieval.manifest import FORMAT, SegmentRecord, parsed

JOURNAL = "building.json"


@dataclass(frozen=True)
class Journal:
    """How far an add has come."""

    inputs: str  # what is being added, as the caller described it
    generation: int  # of the manifest that it adds to
    tokenizer: str
    vocab_size: int
    segment_tokens: int
    next_number: int
    next_position: int
    num_documents: int = 0  # of the inputs, that are in
    finished: tuple[SegmentRecord, ...] = ()
    current: int = 0  # the number of the shard that is being written; 0: none
    checkpoint: Checkpoint = field(default_factory=Checkpoint)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is on the disk yet: then there is nothing to go on from."""
        return not (self.num_documents or self.finished or self.current)

    def continues(self, new: "Journal") -> bool:
        """Whether going on from here gives what starting with `new` would."""
        settings = ("inputs", "tokenizer", "vocab_size", "segment_tokens")
        return all(getattr(self, name) == getattr(new, name) for name in settings)


def write_journal(folder: Path, journal: Journal) -> None:
    """Raises OSError: the one before stays."""
    text = json.dumps({"format": FORMAT, **asdict(journal)}) + "\n"
    write_atomically(folder / JOURNAL, lambda file: file.write(text.encode()))


def read_journal(folder: Path) -> Journal | None:
    """The unfinished add's journal; None where nothing is unfinished."""
    path = folder / JOURNAL
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise ValueError("another format")
        return parsed(Journal, values)
    except FileNotFoundError:
        return None
    except ValueError as error:  # what is no UTF-8 or no JSON, too
        raise DatastoreError(
            f"{path}: is not a journal of this version ({error!r}); delete it to start the "
            "unfinished build again"
        ) from error
