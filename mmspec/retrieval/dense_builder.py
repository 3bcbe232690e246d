"""DenseBuilder: a dense index in memory, while keys are added and removed."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mmspec.errors import MissingExtraError
from mmspec.retrieval.exact_vectors import ExactVectors, Keys, Positions
from mmspec.retrieval.faiss_index import NO_FAISS, faiss_or_none, loaded_faiss, positions_in

logger = logging.getLogger(__name__)

COMPONENTS = 64
EXACT_BELOW = 16_384  # keys: scanning more takes longer than 0.3 ms
_PCA_FROM = 16  # keys a component; fewer say little of the directions
_STAGED_BYTES = 2**28
_LEARNT_FROM = 128  # vectors a list, at most
_MOVED_AT_ONCE = 2**16


class DenseBuilder:
    """Without faiss it takes up to `exact_below` keys, searched exactly by numpy, and says so
    once."""

    def __init__(
        self, dim: int, *, components: int = COMPONENTS, exact_below: int = EXACT_BELOW
    ) -> None:
        self.dim = dim
        self._components = min(components, dim)
        self._exact_below = exact_below
        self._faiss: Any = faiss_or_none()
        self._vectors = ExactVectors.empty(dim)  # all there is without faiss; else what is staged
        self._index: Any = None  # faiss's
        if self._faiss is None:
            logger.warning(
                "faiss is not installed: the dense index is searched exactly by numpy, and takes "
                "up to %d keys; for more, %s",
                exact_below,
                NO_FAISS,
            )

    def load(self, path: Path) -> None:
        """Takes in an index that is there, in place of its own, to be changed. `path` must have
        been checked by its checksum; once it is projected, it keeps its number of components."""
        if path.suffix == ".vectors":
            self._vectors = ExactVectors.read(path)
            return
        faiss = loaded_faiss()
        self._index = faiss.read_index(str(path))
        held = faiss.extract_index_ivf(self._index)
        held.set_direct_map_type(faiss.DirectMap.NoMap)  # older builders left one in some
        if self._index.chain.size() > 1:
            self._components = held.d

    def __len__(self) -> int:
        """Keys."""
        return len(self._vectors.positions) + (self._index.ntotal if self._index else 0)

    @property
    def suffix(self) -> str:
        """Of the file that `write` writes."""
        return ".vectors" if self._faiss is None else ".faiss"

    def add(self, positions: Positions, keys: Keys, *, expected: int = 0) -> None:
        """Keys (rows, dim) of positions (rows,), each position once. `expected` keys in the end:
        the index is laid out for so many, and anew when it has outgrown that. Memory beyond the
        index itself: some 256 MB at most, and these keys.

        Raises ValueError for other shapes and for values that are not finite.
        """
        if keys.shape != (len(positions), self.dim) or not np.isfinite(keys).all():
            raise ValueError(
                f"keys of shape {keys.shape}: expected finite values ({len(positions)}, {self.dim})"
            )
        if self._faiss is None and len(self) + len(keys) > self._exact_below:
            raise MissingExtraError(
                f"more than {self._exact_below} keys in a dense index need faiss: {NO_FAISS}"
            )
        self._vectors = self._vectors.joined(positions, keys)
        if self._faiss is not None and self._vectors.keys.nbytes > _STAGED_BYTES:
            self._absorb(expected)

    def remove(self, positions: Iterable[int]) -> None:
        """Forgets the keys of these positions; those that have none are skipped."""
        gone = np.fromiter(positions, np.int64)
        self._vectors = self._vectors.without(gone)
        if self._index is not None and len(gone):
            self._index.remove_ids(self._faiss.IDSelectorBatch(gone))

    def write(self, file: BinaryIO, *, expected: int = 0) -> None:
        """The finished index, of one key at least. Raises OSError."""
        if self._faiss is None:
            self._vectors.write(file)
            return
        self._absorb(expected)
        file.write(self._faiss.serialize_index(self._index).data)

    def _absorb(self, expected: int) -> None:
        """Moves what is staged into the index, whose form grows with its number of keys."""
        faiss, staged = self._faiss, self._vectors
        total = max(len(self), expected)
        wants_pca = len(self) >= _PCA_FROM * self._components
        if self._index is not None and wants_pca and self._index.chain.size() == 1:
            # Few keys so far, of length 1 but not projected: all of them begin anew.
            held = faiss.extract_index_ivf(self._index)
            positions = positions_in(faiss, held)
            held.set_direct_map_type(faiss.DirectMap.Hashtable)
            staged = staged.joined(positions, held.reconstruct_batch(positions))
            self._index = None
        if self._index is None:
            pca = f"PCAW{self._components},L2norm," if wants_pca else ""
            self._index = faiss.index_factory(self.dim, f"L2norm,{pca}IVF1,Flat")
            faiss.extract_index_ivf(self._index).cp.min_points_per_centroid = 1  # or it prints
            self._index.train(staged.keys)
        if len(staged.keys):
            self._index.add_with_ids(staged.keys, staged.positions)
        self._vectors = ExactVectors.empty(self.dim)
        num_lists = 2 ** round(np.log2(4 * np.sqrt(total)))
        held = faiss.extract_index_ivf(self._index)
        has_few = held.nlist == 1 or 4 * held.nlist <= num_lists
        if total > self._exact_below and has_few and self._index.chain.size() > 1:
            self._relay(num_lists)

    def _relay(self, num_lists: int) -> None:
        """Sorts the vectors, which are projected already, into `num_lists` lists of 8-bit codes;
        fewer where there are not enough vectors to learn so many from."""
        faiss, old = self._faiss, self._index
        held = faiss.extract_index_ivf(old)
        num_lists = min(num_lists, 2 ** int(np.log2(held.ntotal / 39)))
        if num_lists <= held.nlist:
            return
        positions = positions_in(faiss, held)
        held.set_direct_map_type(faiss.DirectMap.Hashtable)
        codes = faiss.index_factory(self._components, f"IVF{num_lists},SQ8")
        codes.cp.min_points_per_centroid = 1
        size = min(len(positions), _LEARNT_FROM * num_lists)
        sample = np.random.default_rng(0).choice(positions, size, replace=False)
        codes.train(held.reconstruct_batch(sample))
        for part in np.array_split(positions, -(-len(positions) // _MOVED_AT_ONCE)):
            codes.add_with_ids(held.reconstruct_batch(part), part)
        both = faiss.IndexPreTransform(codes)
        for place in reversed(range(old.chain.size())):
            both.prepend_transform(old.chain.at(place))
        # A copy, for the transforms belong to `old` and go with it.
        self._index = faiss.deserialize_index(faiss.serialize_index(both))
