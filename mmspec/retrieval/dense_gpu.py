"""GpuSearch: a dense index whose lists are searched on a GPU.

faiss moves no index with a length-1 transform in it (`clone not supported for this type of
VectorTransform`), and a query of a few vectors gains nothing there: what a query goes through first
stays on the CPU, the lists alone move.
"""

import threading
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray


def has_gpu(faiss: ModuleType) -> bool:
    """Whether this faiss was built for GPUs, and finds one."""
    return hasattr(faiss, "index_cpu_to_gpu") and faiss.get_num_gpus() > 0


class GpuSearch:
    """Takes over an IndexPreTransform over an inverted file, whose lists are empty afterwards."""

    def __init__(self, faiss: ModuleType, index: Any) -> None:
        """Raises RuntimeError where faiss cannot move the lists: memory, or a form of codes that
        its GPU part does not have. The index is then as it was."""
        self._resources = faiss.StandardGpuResources()
        lists = faiss.extract_index_ivf(index)
        self._lists = faiss.index_cpu_to_gpu(self._resources, 0, lists)
        self._index = index  # owns the transforms
        places = range(index.chain.size())
        self._transforms = [faiss.downcast_VectorTransform(index.chain.at(n)) for n in places]
        self._lock = threading.Lock()  # faiss's GPU resources are those of one thread at a time
        lists.reset()

    def search(
        self, queries: NDArray[np.float32], limit: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(distances, positions), each (rows, limit), of queries (rows, dim)."""
        for transform in self._transforms:
            queries = transform.apply(queries)
        with self._lock:
            return self._lists.search(queries, limit)
