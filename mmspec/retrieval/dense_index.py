"""DenseIndex: from a hidden state to the positions whose hidden states were most like it.

On FAISS, and everything that a query goes through lies inside of its file: length 1, PCA with
whitening to `components`, length 1 again, then an inverted file of 8-bit codes (one list of exact
vectors while there are few). Distances are squared L2 of unit vectors: 0 .. 4.

FAISS reads its files without distrust, so a damaged or a hostile one may do anything: open only
files whose checksum is known, from a datastore that you trust.
"""

from pathlib import Path
from typing import Protocol

import numpy as np

from mmspec.retrieval.exact_vectors import ExactVectors, Keys, Neighbours
from mmspec.retrieval.faiss_index import FaissIndex


class _Searchable(Protocol):
    def search(self, queries: Keys, limit: int) -> Neighbours: ...


class DenseIndex:
    """Reads a dense index; the file stays mapped, and is read as it is needed."""

    def __init__(self, index: _Searchable, *, dim: int) -> None:
        """Use `open`."""
        self._index = index
        self.dim = dim

    @classmethod
    def open(cls, path: Path, *, dim: int, use_gpu: bool | None = None) -> "DenseIndex":
        """`path` must have been checked by its checksum. `use_gpu=None`: where this faiss can.

        Raises MissingExtraError where it needs faiss and there is none.
        """
        if path.suffix == ".vectors":
            return cls(ExactVectors.read(path), dim=dim)
        return cls(FaissIndex(path, use_gpu=use_gpu), dim=dim)

    def search(self, queries: Keys, *, limit: int) -> Neighbours:
        """`queries` (rows, dim). Raises ValueError for another shape."""
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries of shape {queries.shape}: expected (rows, {self.dim})")
        return self._index.search(np.ascontiguousarray(queries, np.float32), limit)
