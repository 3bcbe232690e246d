"""ExactVectors: keys as they came, searched one by one: what there is without faiss."""

import json
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mmspec.errors import DatastoreError

_MAGIC = b"mmspec-vectors-1\n"

Keys: TypeAlias = NDArray[np.float32]
Positions: TypeAlias = NDArray[np.int64]


class Neighbours(NamedTuple):
    """The nearest positions of each query, the nearest first."""

    positions: Positions  # (rows, limit); -1 where there are no more
    distances: NDArray[np.float32]  # (rows, limit)


class ExactVectors(NamedTuple):
    """Keys as they came, searched by their cosine."""

    positions: Positions  # (keys,)
    keys: Keys  # (keys, dim)

    @classmethod
    def empty(cls, dim: int) -> "ExactVectors":
        return cls(np.empty(0, np.int64), np.empty((0, dim), np.float32))

    @classmethod
    def read(cls, path: Path) -> "ExactVectors":
        with path.open("rb") as file:
            if file.readline() != _MAGIC:
                raise DatastoreError(f"{path}: holds no vectors of this version; build it again")
            count, dim = json.loads(file.readline())
            positions = np.frombuffer(file.read(8 * count), "<i8")
            keys = np.frombuffer(file.read(), "<f4").reshape(count, dim)
        return cls(positions, keys)

    def write(self, file: BinaryIO) -> None:
        file.write(_MAGIC + json.dumps(self.keys.shape).encode() + b"\n")
        file.write(self.positions.astype("<i8").tobytes())
        file.write(self.keys.astype("<f4").tobytes())

    def joined(self, positions: Positions, keys: Keys) -> "ExactVectors":
        return ExactVectors(
            np.concatenate([self.positions, positions]),
            np.concatenate([self.keys, keys.astype(np.float32, copy=False)]),
        )

    def without(self, positions: Positions) -> "ExactVectors":
        is_kept = ~np.isin(self.positions, positions)
        return ExactVectors(self.positions[is_kept], self.keys[is_kept])

    def search(self, queries: Keys, limit: int) -> Neighbours:
        distances = 2.0 - 2.0 * (_unit(queries) @ _unit(self.keys).T)
        order = np.argsort(distances, axis=1, kind="stable")[:, :limit]
        found = np.take_along_axis(distances, order, axis=1).astype(np.float32)
        missing = ((0, 0), (0, limit - order.shape[1]))
        return Neighbours(
            np.pad(self.positions[order], missing, constant_values=-1),
            np.pad(found, missing, constant_values=np.inf),
        )


def _unit(vectors: Keys) -> Keys:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
