"""GeneratedStore: what was generated before, as a source of drafts, bounded in bytes.

As SuffixDecoding's global tree (arXiv 2411.04975), but a table of n-grams: an entry leaves it in
the time that it took to come in. Nothing of one namespace is ever found from another.
"""

import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from mmspec.errors import DatastoreError
from mmspec.retrieval.continuations import Continuation, before_separator
from mmspec.retrieval.files import write_atomically

_LEVELS = (3, 8)  # tokens of an n-gram; a match of eight is looked for first
_PLACES = 16  # kept of each n-gram, the newest
_TOKEN_BYTES = 320  # what a token costs in the tables, measured: 290 for text that never repeats
_ENTRY_BYTES = 600
_MAGIC = b"mmspec-generated-1\n"


class GeneratedMatch(NamedTuple):
    """A place in an entry whose preceding tokens equal the end of a query."""

    entry: int  # serial number of the entry
    end: int  # index of the token that followed there
    length: int  # matching tokens before it, up to the look-up's `max_match`


@dataclass
class _Namespace:
    entries: OrderedDict[int, tuple[int, ...]] = field(default_factory=OrderedDict)
    serials: dict[tuple[int, ...], int] = field(default_factory=dict)  # the entries' own
    # n-gram's hash -> the places behind it (entry << 32 | end), the newest last; one as it is.
    places: list[dict[int, int | tuple[int, ...]]] = field(
        default_factory=lambda: [{} for _ in _LEVELS]
    )


class GeneratedStore:
    """Token lists in, matches out. Not locked: the caller lets one thread in at a time."""

    def __init__(self, max_bytes: int = 64 * 2**20) -> None:
        """`max_bytes` of memory, all namespaces together: some 200,000 tokens in 64 MB. What was
        added or useful least recently leaves first."""
        if max_bytes < 0:
            raise ValueError(f"max_bytes={max_bytes}: expected 0 or more")
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._spaces: dict[str, _Namespace] = {}
        self._order: OrderedDict[int, str] = OrderedDict()  # every entry, the least useful first
        self._serial = 0

    def __len__(self) -> int:
        """Entries."""
        return len(self._order)

    def add(self, tokens: Sequence[int], *, namespace: str = "") -> None:
        """One finished text. One that is longer than fits loses its beginning; one shorter than
        an n-gram and a token is not kept. One that is there already counts as useful."""
        room = (self.max_bytes - _ENTRY_BYTES) // _TOKEN_BYTES
        entry = tuple(tokens[-room:]) if room > 0 else ()
        if len(entry) <= _LEVELS[0]:
            return
        space = self._spaces.get(namespace) or _Namespace()
        if entry in space.serials:
            self.was_useful(space.serials[entry])
            return
        self._spaces[namespace] = space
        self._serial += 1
        space.entries[self._serial] = entry
        space.serials[entry] = self._serial
        self._order[self._serial] = namespace
        self.num_bytes += _bytes_of(entry)
        for level, end, key in _grams(entry):
            _put(space.places[level], key, self._serial << 32 | end)
        while self.num_bytes > self.max_bytes:
            self._drop(next(iter(self._order)))

    def matches(
        self,
        query: Sequence[int],
        *,
        namespace: str = "",
        limit: int = 16,
        min_match: int = 3,
        max_match: int = 32,
    ) -> list[GeneratedMatch]:
        """Up to `limit` places like the end of `query`, the longest match first, among equals the
        latest; only matches of at least `min_match` tokens, or of 3 if that is more, among the
        16 newest places of each n-gram."""
        space = self._spaces.get(namespace)
        if space is None:
            return []
        tail = tuple(query[-max_match:])
        found: dict[int, GeneratedMatch] = {}
        for size, table in zip(reversed(_LEVELS), reversed(space.places), strict=True):
            if len(tail) < size:
                continue
            for place in reversed(_taken(table.get(hash(tail[-size:]), ()))):
                if place not in found:
                    entry, end = place >> 32, place & (2**32 - 1)
                    before = space.entries[entry][max(end - len(tail), 0) : end]
                    length = _common_end(before, tail)
                    if length >= max(min_match, size):  # less: another n-gram of the same hash
                        found[place] = GeneratedMatch(entry, end, length)
            if len(found) >= limit:
                break
        ranked = sorted(found.values(), key=lambda m: (-m.length, -m.entry, -m.end))
        return ranked[:limit]

    def continuation(self, match: GeneratedMatch, length: int) -> Continuation:
        """Up to `length` tokens that followed at a match, cut before a separator (a negative
        token)."""
        tokens = before_separator(self._entry(match.entry)[match.end : match.end + length])
        return Continuation(tokens, match.length, "generated", origin=match.entry)

    def was_useful(self, entry: int) -> None:
        """Tokens copied from this entry were accepted: it leaves last."""
        if entry in self._order:
            self._order.move_to_end(entry)

    def forget(self, namespace: str) -> None:
        """Drops everything of a namespace."""
        space = self._spaces.get(namespace)
        for entry in list(space.entries) if space else ():
            self._drop(entry)

    def namespaces(self) -> list[str]:
        """Those that hold anything."""
        return sorted(self._spaces)

    def save(self, path: str | Path, *, tokenizer: str) -> None:
        """Writes everything, in the order of usefulness, to a file that its owner alone can read.

        Nothing is written unless this is called. Raises OSError: the file is as it was.
        """
        body = b"".join(self._packed())
        head = _MAGIC + _framed(tokenizer.encode())
        data = head + sha256(head + body).digest() + body
        write_atomically(Path(path), lambda file: file.write(data), mode=0o600)

    @classmethod
    def load(
        cls, path: str | Path, *, tokenizer: str, max_bytes: int = 64 * 2**20
    ) -> "GeneratedStore":
        """What `save` wrote; of more than fits the most useful.

        Raises DatastoreError: a damaged file, another format, another tokenizer, or nothing that
        can be read.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise DatastoreError(
                f"{path}: cannot be read: {error.strerror}; expected a file of generated texts, or "
                "the name of a new one"
            ) from error
        if not data.startswith(_MAGIC):
            raise DatastoreError(f"{path}: holds no generated texts of this version; delete it")
        try:
            found, at = _unframed(data, len(_MAGIC))
            checksum, body = data[at : at + 32], data[at + 32 :]
            if sha256(data[:at] + body).digest() != checksum:
                raise ValueError("another checksum")
        except (struct.error, ValueError) as error:
            raise DatastoreError(
                f"{path}: this file is damaged; delete it to begin anew"
            ) from error
        if found.decode() != tokenizer:
            raise DatastoreError(
                f"{path}: its texts were made with another tokenizer: got {tokenizer}, it holds "
                f"tokens of {found.decode()}; delete it, or name another file"
            )
        store, at = cls(max_bytes), 0
        while at < len(body):
            namespace, at = _unframed(body, at)
            packed, at = _unframed(body, at)
            tokens = struct.unpack(f"<{len(packed) // 4}i", packed)
            store.add(tokens, namespace=namespace.decode())
        return store

    def _packed(self) -> Iterator[bytes]:
        for entry, namespace in self._order.items():
            tokens = self._entry(entry)
            yield _framed(namespace.encode())
            yield _framed(struct.pack(f"<{len(tokens)}i", *tokens))

    def _entry(self, entry: int) -> tuple[int, ...]:
        return self._spaces[self._order[entry]].entries[entry]

    def _drop(self, entry: int) -> None:
        namespace = self._order.pop(entry)
        space = self._spaces[namespace]
        tokens = space.entries.pop(entry)
        del space.serials[tokens]
        self.num_bytes -= _bytes_of(tokens)
        for level, end, key in _grams(tokens):
            _take(space.places[level], key, entry << 32 | end)
        if not space.entries:
            del self._spaces[namespace]


def _bytes_of(entry: tuple[int, ...]) -> int:
    return _ENTRY_BYTES + _TOKEN_BYTES * len(entry)


def _grams(entry: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """(level, end, hash) of every n-gram that a token follows and no separator is in."""
    for level, size in enumerate(_LEVELS):
        clear = 0  # tokens since the last separator
        for end in range(1, len(entry)):
            clear = clear + 1 if entry[end - 1] >= 0 else 0
            if clear >= size and entry[end] >= 0:
                yield level, end, hash(entry[end - size : end])


def _put(table: dict[int, int | tuple[int, ...]], key: int, place: int) -> None:
    places = (*_taken(table.get(key, ())), place)[-_PLACES:]
    table[key] = place if len(places) == 1 else places


def _take(table: dict[int, int | tuple[int, ...]], key: int, place: int) -> None:
    places = tuple(one for one in _taken(table.get(key, ())) if one != place)
    if len(places) > 1:
        table[key] = places
    elif places:
        table[key] = places[0]
    else:
        table.pop(key, None)


def _taken(places: int | tuple[int, ...]) -> tuple[int, ...]:
    return (places,) if isinstance(places, int) else places


def _common_end(before: tuple[int, ...], tail: tuple[int, ...]) -> int:
    length = 0
    for one, other in zip(reversed(before), reversed(tail), strict=False):
        if one != other or one < 0:
            break
        length += 1
    return length


def _framed(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def _unframed(data: bytes, at: int) -> tuple[bytes, int]:
    (size,) = struct.unpack_from("<I", data, at)
    return data[at + 4 : at + 4 + size], at + 4 + size
