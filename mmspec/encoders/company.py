"""Whether what an encoder says of a medium depends on the others that it is given with it.

Most encoders read each medium by itself. Some attend across all of a call, or pad them to the
largest: those of a prompt are one item then, encoded together and found again together.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmspec.encoders.media import MediaItem
from mmspec.encoders.outputs import FeatureError, Features, split_output
from mmspec.kernels import raise_if_lost, shown
from mmspec.state import MediaKind

logger = logging.getLogger(__name__)

_TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-2}


class CompanyError(FeatureError):
    """Media that were taken one by one have to be encoded together."""


@dataclass
class Company:
    """What a model's encoders were seen to do. Written to under the model's lock."""

    together: set[MediaKind] = field(default_factory=set)
    _seen: set[tuple[object, ...]] = field(default_factory=set)

    def check(
        self,
        model: nn.Module,
        items: Sequence[MediaItem],
        encode: Callable[[Sequence[MediaItem]], object],
    ) -> Iterable[tuple[MediaItem, Features]]:
        """Of all of a kind in a prompt the shortest and the longest are encoded together and alone:
        once for media of one length and of several, of one content and of several, and for each
        two powers of two that they are as long as: some pad to a least length, and those below it
        depend on the others (Qwen3-Omni's recordings of less than a second). Gives what was said of
        them, if they were. Raises CompanyError where they have to be encoded together."""
        kind = items[0].kind
        if len(items) == 1:
            return ()
        if kind in self.together:
            raise CompanyError(kind)
        distinct = {item.digest: item for item in items}.values()
        among = sorted(distinct, key=lambda item: item.num_tokens)
        pair = among[0], among[-1]  # of one content: it twice
        lengths = [item.num_tokens for item in pair]
        sizes = [length.bit_length() for length in lengths]
        case = kind, len(among) > 1, lengths[0] < lengths[1], *sizes
        if case in self._seen:
            return ()
        both: list[Features] = []
        tolerance = 0.25
        try:
            both += split_output(encode(pair), pair)
            tolerance = _TOLERANCES.get(both[0].rows[0].dtype, tolerance)
            alone = [one for item in pair for one in split_output(encode([item]), [item])]
            rows = [zip(a.rows, b.rows, strict=True) for a, b in zip(alone, both, strict=True)]
            apart = float(torch.tensor([_apart(*two) for each in rows for two in each]).max())
            reason = f"by {apart:.2g} of what it says"
        except Exception as error:
            if isinstance(error, FeatureError) and not both:  # in no form that could be kept
                return ()
            raise_if_lost(error, next(model.parameters()).device)
            apart, reason = math.inf, shown(error)
        if apart > tolerance:
            self.together.add(kind)
            logger.warning(
                "%s: what its encoder says of an input of %s depends on those beside it (%s); all "
                "of a prompt are encoded together from now on, and found again together only",
                type(model).__name__,
                kind,
                reason,
            )
            raise CompanyError(kind)
        if apart <= tolerance:  # nothing is known of NaN
            self._seen.add(case)
        return zip(pair, both, strict=True)


def _apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference of a token's features, (tokens, hidden), as a share of their size."""
    found, expected = found.float(), expected.float()
    size = expected.norm(dim=-1)
    size = size.clamp_min(size.mean()) + torch.finfo(size.dtype).tiny
    return float(((found - expected).norm(dim=-1) / size).max())
