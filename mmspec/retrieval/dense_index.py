"""DenseIndex: from a hidden state to the positions whose hidden states were most like it.

On FAISS, and everything that a query goes through lies inside of its file: length 1, PCA with
whitening to `components`, length 1 again, then an inverted file of 8-bit codes (one list of exact
vectors while there are few). Distances are squared L2 of unit vectors: 0 .. 4.

FAISS reads its files without distrust, so a damaged or a hostile one may do anything: open only
files whose checksum is known, from a datastore that you trust.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mmspec.errors import DatastoreError, MissingExtraError
from mmspec.retrieval.dense_gpu import GpuSearch, has_gpu
from mmspec.retrieval.files import chunks

logger = logging.getLogger(__name__)

COMPONENTS = 64
EXACT_BELOW = 16_384  # keys: scanning more takes longer than 0.3 ms
_PCA_FROM = 16  # keys a component; fewer say little of the directions
_STAGED_BYTES = 2**28
_LEARNT_FROM = 128  # vectors a list, at most
_MOVED_AT_ONCE = 2**16
_NO_FAISS = "install mmspec[cpu] (faiss-cpu), or a GPU build of faiss"
_MAGIC = b"mmspec-vectors-1\n"

Keys: TypeAlias = NDArray[np.float32]
Positions: TypeAlias = NDArray[np.int64]


class Neighbours(NamedTuple):
    """The nearest positions of each query, the nearest first."""

    positions: Positions  # (rows, limit); -1 where there are no more
    distances: NDArray[np.float32]  # (rows, limit)


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
            return cls(_ExactVectors.read(path), dim=dim)
        return cls(_FaissIndex(path, use_gpu=use_gpu), dim=dim)

    def search(self, queries: Keys, *, limit: int) -> Neighbours:
        """`queries` (rows, dim). Raises ValueError for another shape."""
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries of shape {queries.shape}: expected (rows, {self.dim})")
        return self._index.search(np.ascontiguousarray(queries, np.float32), limit)


class DenseBuilder:
    """A dense index in memory, while keys are added and removed.

    Without faiss it takes up to `exact_below` keys, searched exactly by numpy, and says so once.
    """

    def __init__(
        self, dim: int, *, components: int = COMPONENTS, exact_below: int = EXACT_BELOW
    ) -> None:
        self.dim = dim
        self._components = min(components, dim)
        self._exact_below = exact_below
        self._faiss: Any = _faiss_or_none()
        self._vectors = _ExactVectors.empty(dim)  # all there is without faiss; else what is staged
        self._index: Any = None  # faiss's
        if self._faiss is None:
            logger.warning(
                "faiss is not installed: the dense index is searched exactly by numpy, and takes "
                "up to %d keys; for more, %s",
                exact_below,
                _NO_FAISS,
            )

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        dim: int,
        components: int = COMPONENTS,
        exact_below: int = EXACT_BELOW,
    ) -> "DenseBuilder":
        """An index that is there, to be changed. `path` must have been checked by its checksum;
        once it is projected, it keeps its own number of components."""
        builder = cls(dim, components=components, exact_below=exact_below)
        if path.suffix == ".vectors":
            builder._vectors = _ExactVectors.read(path)
        else:
            faiss = _faiss()
            builder._index = faiss.read_index(str(path))
            if builder._index.chain.size() > 1:
                builder._components = faiss.extract_index_ivf(builder._index).d
        return builder

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
                f"more than {self._exact_below} keys in a dense index need faiss: {_NO_FAISS}"
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
        for chunk in chunks(memoryview(self._faiss.serialize_index(self._index))):
            file.write(chunk)

    def _absorb(self, expected: int) -> None:
        """Moves what is staged into the index, whose form grows with its number of keys."""
        faiss, staged = self._faiss, self._vectors
        total = max(len(self), expected)
        wants_pca = len(self) >= _PCA_FROM * self._components
        if self._index is not None and wants_pca and self._index.chain.size() == 1:
            # Few keys so far, of length 1 but not projected: all of them begin anew.
            held = faiss.extract_index_ivf(self._index)
            positions = _positions(faiss, held)
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
        self._vectors = _ExactVectors.empty(self.dim)
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
        positions = _positions(faiss, held)
        held.set_direct_map_type(faiss.DirectMap.Hashtable)
        num_lists = min(num_lists, 2 ** int(np.log2(len(positions) / 39)))
        if num_lists <= held.nlist:
            return
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


class _FaissIndex:
    """A file, mapped; or on the GPU."""

    def __init__(self, path: Path, *, use_gpu: bool | None) -> None:
        faiss = _faiss()
        can_gpu = has_gpu(faiss)
        if use_gpu and not can_gpu:
            raise MissingExtraError(
                "use_gpu=True: this faiss has no GPU, or finds none; install a GPU build of it"
            )
        is_on_gpu = can_gpu if use_gpu is None else use_gpu
        self._index: Any = _read(faiss, path, is_mapped=not is_on_gpu)
        if is_on_gpu:
            try:
                self._index = GpuSearch(faiss, self._index)
            except RuntimeError as error:
                if use_gpu:
                    raise DatastoreError(f"{path}: use_gpu=True: {error}") from error
                logger.warning("%s: searched on the CPU, as faiss says: %s", path.name, error)

    def search(self, queries: Keys, limit: int) -> Neighbours:
        distances, positions = self._index.search(queries, limit)
        return Neighbours(positions, distances)


class _ExactVectors(NamedTuple):
    """Keys as they came, searched by their cosine."""

    positions: Positions  # (keys,)
    keys: Keys  # (keys, dim)

    @classmethod
    def empty(cls, dim: int) -> "_ExactVectors":
        return cls(np.empty(0, np.int64), np.empty((0, dim), np.float32))

    @classmethod
    def read(cls, path: Path) -> "_ExactVectors":
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

    def joined(self, positions: Positions, keys: Keys) -> "_ExactVectors":
        return _ExactVectors(
            np.concatenate([self.positions, positions]),
            np.concatenate([self.keys, keys.astype(np.float32, copy=False)]),
        )

    def without(self, positions: Positions) -> "_ExactVectors":
        is_kept = ~np.isin(self.positions, positions)
        return _ExactVectors(self.positions[is_kept], self.keys[is_kept])

    def search(self, queries: Keys, limit: int) -> Neighbours:
        distances = 2.0 - 2.0 * (_unit(queries) @ _unit(self.keys).T)
        order = np.argsort(distances, axis=1, kind="stable")[:, :limit]
        found = np.take_along_axis(distances, order, axis=1).astype(np.float32)
        missing = ((0, 0), (0, limit - order.shape[1]))
        return Neighbours(
            np.pad(self.positions[order], missing, constant_values=-1),
            np.pad(found, missing, constant_values=np.inf),
        )


def _read(faiss: ModuleType, path: Path, *, is_mapped: bool) -> Any:
    mapped = getattr(faiss, "IO_FLAG_MMAP_IFC", faiss.IO_FLAG_MMAP)
    try:
        index = faiss.read_index(str(path), mapped if is_mapped else 0)
    except RuntimeError as error:
        raise DatastoreError(
            f"{path}: this faiss ({faiss.__version__}) cannot read it: {error}; build it again"
        ) from error
    lists = faiss.extract_index_ivf(index)
    lists.nprobe = max(lists.nlist // 16, 1)  # fewer lose recall where clusters are few
    return index


def _unit(vectors: Keys) -> Keys:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _positions(faiss: ModuleType, lists: Any) -> Positions:
    """Of everything in an inverted file."""
    parts = [np.empty(0, np.int64)]
    for number in range(lists.nlist):
        size = lists.invlists.list_size(number)
        if size:
            parts.append(faiss.rev_swig_ptr(lists.invlists.get_ids(number), size).copy())
    return np.concatenate(parts)


def _faiss() -> ModuleType:
    faiss = _faiss_or_none()
    if faiss is None:
        raise MissingExtraError(f"this dense index was built by faiss: {_NO_FAISS}")
    return faiss


def _faiss_or_none() -> ModuleType | None:
    try:
        import faiss
    except ImportError:
        return None
    return faiss
