"""The ledger: answers in a JSONL file, a line each, that a killed run goes on with."""

import json
import os
from collections.abc import KeysView, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmspec.errors import InputError

_OTHER_FORMS = (".csv", ".tsv", ".parquet", ".gz")
_BEGINNING = b'{"id": '  # of each line, also of one that a kill cut off


class Ledger:
    """A JSONL file of answers, each of which is on the disk before the next one is written.

    A line is an object with `id`, `asked` (a digest of its question, where one was asked), `run`
    (what the answers of one file have in common: model, prompt, settings) and either `text` or
    `error`, or OpenAI's `response`. Opened again, what was answered stays; a line that a kill cut
    off goes, and so do failures, which are tried again. Of two questions under one id the newer
    one's answer stays, or none where it failed.
    """

    def __init__(self, path: str | Path, *, run: str, fresh: bool = False) -> None:
        """Raises InputError: cannot be written, is no such file or named as another kind, holds
        answers of another run, or another process writes it. `fresh` drops the answers there."""
        self.path = Path(path)
        self._asked: dict[str, str | None] = {}  # of each answer; None: nobody wrote it down
        self._has_outdated = False
        self._run = run
        if self.path.suffix.lower() in _OTHER_FORMS:
            raise InputError(
                f"{self.path}: answers are JSON lines; expected a name such as "
                f"{self.path.stem.split('.')[0]}.jsonl"
            )
        if self.path.exists() and not self.path.is_file():  # a device may be read for ever
            raise InputError(
                f"{self.path}: cannot be written: no regular file; expected a new file or one of "
                "mmspec batch's own"
            )
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"{self.path}: another run writes this file; wait for it, or name another"
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            if fresh:
                self._drop()
            self._tidy()
            self._file = self.path.open("ab")
        except OSError as error:
            self._lock.release()
            raise self._unwritable(error) from error
        except InputError:
            self._lock.release()
            raise

    @property
    def answered(self) -> KeysView[str]:
        """The ids that have an answer, of this run or an earlier one."""
        return self._asked.keys()

    def holds(self, name: str, asked: str | None) -> bool:
        """Whether this question has its answer under this id; None: whatever was asked."""
        return name in self._asked and (asked is None or self._asked[name] in (None, asked))

    def write(self, values: Mapping[str, object]) -> None:
        """Adds a line; its `id` comes first. Raises InputError where the disk is full."""
        line = json.dumps({**values, "run": self._run}, ensure_ascii=False) + "\n"
        try:
            self._file.write(line.encode(errors="backslashreplace"))
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from error
        self._note(str(values["id"]), values)

    def close(self) -> None:
        try:
            self._file.close()
            if self._has_outdated:
                self._compact(with_failures=True)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            self._lock.release()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _drop(self) -> None:
        """Deletes the file, if its first line is one of ours."""
        if self.path.exists():
            with self.path.open("rb") as file:
                self._values(1, file.readline())
            self.path.unlink()

    def _tidy(self) -> None:
        """Reads what is there, and leaves the whole lines of answers."""
        if not self.path.exists():
            return
        has_failures, size, last = False, 0, b"\n"
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if values := self._values(number, line):
                    size, last = size + len(line), line
                    has_failures |= not self._keeps(values)
        os.truncate(self.path, size)  # a line that was cut off
        if not last.endswith(b"\n"):  # or lost its end alone
            with self.path.open("ab") as file:
                file.write(b"\n")
        if has_failures or self._has_outdated:
            self._compact(with_failures=False)
            self._has_outdated = False

    def _values(self, number: int, line: bytes) -> dict[str, Any]:
        """What a line says; nothing if it was cut off. Raises InputError: it is none of ours."""
        try:
            values = json.loads(line)
            values["id"], values["run"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            is_cut = isinstance(error, ValueError) and not line.endswith(b"\n")
            if is_cut and line.startswith(_BEGINNING[: len(line)]):
                return {}
            raise self._foreign(number) from error
        return values

    def _keeps(self, values: Mapping[str, Any]) -> bool:
        """Whether the line is an answer, which is noted."""
        if values["run"] != self._run:
            raise InputError(
                f"{self.path}: holds answers of another model, prompt or settings; name another "
                "file, or delete this one (mmspec batch: --fresh)"
            )
        self._note(values["id"], values)
        return _is_answer(values)

    def _note(self, name: str, values: Mapping[str, Any]) -> None:
        """Takes up what a line says of its id."""
        if _is_answer(values):
            self._has_outdated |= name in self._asked
            self._asked[name] = values.get("asked")
        elif "asked" in values and name in self._asked:
            self._has_outdated = True
            del self._asked[name]

    def _compact(self, *, with_failures: bool) -> None:
        """Leaves the answers to the last question under each id, and what failed or not."""
        newest: dict[str, int] = {}
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                values = json.loads(line)
                if _is_answer(values):
                    newest[values["id"]] = number
                elif "asked" in values:
                    newest.pop(values["id"], None)
        kept = set(newest.values())
        beside = self.path.with_name(f".{self.path.name}.kept")
        try:
            with self.path.open("rb") as file, beside.open("wb") as copy:
                copy.writelines(
                    line
                    for number, line in enumerate(file)
                    if number in kept or (with_failures and not _is_answer(json.loads(line)))
                )
            beside.replace(self.path)
        finally:
            if beside.is_file():  # on a full disk
                beside.unlink()

    def _foreign(self, number: int) -> InputError:
        return InputError(
            f"{self.path}, line {number}: was not written by mmspec batch; expected a new file or "
            "one of its own"
        )

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(
            f"{self.path}: cannot be written: {error.strerror or error}; what was answered is "
            "safe, and the same command goes on from it"
        )


def _is_answer(values: Mapping[str, Any]) -> bool:
    """Whether the line says no failure, of ours or in OpenAI's form."""
    if "custom_id" in values and "response" in values:
        return bool(values["response"]["status_code"] == 200)
    return "error" not in values
