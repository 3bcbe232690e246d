"""DFlash: which head drafts, and how its trees grow."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mmspec.drafters.dflash.checkpoint import load
from mmspec.drafters.dflash.drafter import BoundDFlash
from mmspec.drafters.dflash.module import DFlashHead
from mmspec.drafters.eagle.settings import DTYPES, LEAST_WINDOW
from mmspec.drafters.growing.settings import Draw, TreeSettings
from mmspec.errors import check_setting
from mmspec.inputs import InputProcessor
from mmspec.target import Target

_NAME = "drafter.dflash"
_check = partial(check_setting, _NAME)


class DFlash:
    """Block diffusion (arXiv 2602.06036): one forward of a small trained network that reads the
    target's hidden states drafts a whole block of tokens."""

    name = "dflash"

    def __init__(
        self,
        head: DFlashHead | str | Path,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        block: int | None = None,
        top_k: int = 8,
        min_confidence: float = 0.05,
        draw: Draw = "coupled",
        profile: Sequence[int] = (),
        window: int = 4096,
    ) -> None:
        """`head`: one, or its folder or hub name (`revision`); `dtype`: it is computed in, "auto"
        the target's.

        `block`: tokens of a block, the newest one of the text included; None: as many as the head
        was trained for. Of each place's `top_k` tokens those paths are drafted that are believed to
        be accepted with `min_confidence`. With draw="sample", for rules that divide by q,
        `profile[d]` tokens are drawn below each node of depth d; empty: a chain.
        `window`: newest tokens of a text that the head sees.
        Raises ConfigError for values that make no sense, and as `load` does."""
        _check("dtype", dtype in DTYPES, dtype, f"one of {', '.join(DTYPES)}")
        _check("window", window >= LEAST_WINDOW, window, f"at least {LEAST_WINDOW} tokens")
        self.head = head if isinstance(head, DFlashHead) else load(head, revision=revision)
        trained = self.head.config.block_size
        size = trained if block is None else block
        _check("block", 2 <= size <= trained, block, f"2 to {trained}, what it was trained for")
        fits = len(profile) < size
        _check("profile", fits, list(profile), f"children a node, for up to {size - 1} depths")
        self.trees = TreeSettings.checked(
            _NAME,
            {"draw": draw, "profile": profile},
            max_depth=size - 1,
            top_k=top_k,
            min_confidence=min_confidence,
        )
        self.dtype = DTYPES[dtype]
        self.window = window

    def for_target(self, target: Target, inputs: InputProcessor | None) -> BoundDFlash:
        """The drafter of one target. Raises ConfigError for a head of another one."""
        return BoundDFlash(self, target)
