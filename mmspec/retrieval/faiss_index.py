"""FaissIndex: a file of faiss's, searched where it lies, or on a GPU."""

import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mmspec.errors import DatastoreError, MissingExtraError
from mmspec.retrieval.dense_gpu import GpuSearch, has_gpu
from mmspec.retrieval.exact_vectors import Keys, Neighbours, Positions

logger = logging.getLogger(__name__)

NO_FAISS = "install mmspec[cpu] (faiss-cpu), or a GPU build of faiss"


class FaissIndex:
    """A file, mapped; or on the GPU."""

    def __init__(self, path: Path, *, use_gpu: bool | None) -> None:
        faiss = loaded_faiss()
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


def positions_in(faiss: ModuleType, lists: Any) -> Positions:
    """Of everything in an inverted file."""
    parts = [np.empty(0, np.int64)]
    for number in range(lists.nlist):
        size = lists.invlists.list_size(number)
        if size:
            parts.append(faiss.rev_swig_ptr(lists.invlists.get_ids(number), size).copy())
    return np.concatenate(parts)


def loaded_faiss() -> ModuleType:
    faiss = faiss_or_none()
    if faiss is None:
        raise MissingExtraError(f"this dense index was built by faiss: {NO_FAISS}")
    return faiss


def faiss_or_none() -> ModuleType | None:
    try:
        import faiss
    except ImportError:
        return None
    return faiss
