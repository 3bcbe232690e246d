"""WeightSource: which contents of which weight a copy was made from."""

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class WeightSource:
    """Keeps no memory of the weight's, and yet is not deceived by another that comes to lie where
    it was: while the weak reference is there, no other storage has its number."""

    def __init__(self, weight: Tensor) -> None:
        self._storage = StorageWeakRef(weight.untyped_storage())
        self._place = (weight.data_ptr(), weight._version)

    def is_still(self, weight: Tensor) -> bool:
        """Whether the weight is that one, not written to since, but for writes past autograd's
        version counter (`.data`)."""
        return (weight.data_ptr(), weight._version) == self._place and (
            weight.untyped_storage()._cdata == self._storage.cdata
        )
