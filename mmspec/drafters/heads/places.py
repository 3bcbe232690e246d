"""TextPlaces: where the tokens of one text stand, for a head that turns them by it."""

import torch
from torch import Tensor

from mmspec.state import Prompt
from mmspec.target.positions import prompt_positions
from mmspec.target.target import Target


class TextPlaces:
    """Counted one by one, or in the planes of M-RoPE (arXiv 2409.12191) as the target counts: there
    an image's tokens stand in rows and columns, and a text goes on behind it."""

    def __init__(self, offsets: tuple[int, ...] = (0,), prompt: Tensor | None = None) -> None:
        """`prompt` (planes, seq) int64: of its tokens; None: as all others. The place of any
        other is its index in the text and the `offsets` (planes,)."""
        self.offsets = offsets
        self._prompt = prompt
        self.num_uneven = 0  # tokens of the text's beginning that do not stand so
        if prompt is not None:
            uneven = (prompt != self._counted(0, prompt.shape[1])).any(dim=0).nonzero()
            self.num_uneven = int(uneven[-1]) + 1 if len(uneven) else 0

    @staticmethod
    def of(target: Target, prompt: Prompt, *, planes: int) -> "TextPlaces":
        """For a head that counts in so many planes."""
        if planes == 1:
            return TextPlaces()
        positions, offsets = prompt_positions(target.model, prompt)
        if len(offsets) == planes:
            return TextPlaces(offsets, positions.squeeze(1))
        return TextPlaces(offsets[:1] * planes)

    def at(self, first: int, count: int) -> Tensor:
        """(planes, count) int64, of the tokens from index `first` on."""
        places = self._counted(first, count)
        uneven = min(max(self.num_uneven - first, 0), count)
        if self._prompt is not None:
            places[:, :uneven] = self._prompt[:, first : first + uneven]
        return places

    def _counted(self, first: int, count: int) -> Tensor:
        return torch.arange(first, first + count) + torch.tensor(self.offsets).unsqueeze(1)
