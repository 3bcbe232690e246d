"""Eagle: which head drafts, and how its trees grow."""

from functools import partial
from pathlib import Path
from typing import Unpack

import torch

from mmspec.drafters.eagle import checkpoint
from mmspec.drafters.eagle.bound_head import BoundHead
from mmspec.drafters.eagle.drafter import BoundEagle
from mmspec.drafters.eagle.module import EagleHead
from mmspec.drafters.growing.cape import BranchingName
from mmspec.drafters.growing.settings import TreeOptions, TreeSettings
from mmspec.errors import check_setting
from mmspec.inputs import InputProcessor
from mmspec.target import Target

_NAME = "drafter.eagle"
_check = partial(check_setting, _NAME)
DTYPES = {"auto": None, "float64": torch.float64, "float32": torch.float32,
           "bfloat16": torch.bfloat16, "float16": torch.float16}  # fmt: skip
LEAST_WINDOW = 16


class Eagle:
    """Drafting at the level of features: EAGLE-1 (arXiv 2401.15077) and EAGLE-3 (2503.01840), which
    of them the head says, with EAGLE-2's trees (2406.16858): they follow what the head is sure of.
    """

    name = "eagle"

    def __init__(
        self,
        head: EagleHead | str | Path,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        max_depth: int = 6,
        top_k: int = 8,
        min_confidence: float = 0.05,
        branching: BranchingName = "best",
        window: int = 4096,
        **trees: Unpack[TreeOptions],
    ) -> None:
        """`head`: one, or its folder or hub name (`revision`); `dtype`: it is computed in, "auto"
        the target's.

        `top_k` children a node and nodes a level, down to `max_depth`, as long as a path is
        believed to be accepted with `min_confidence`. With branching="cape" one node a level goes
        on, and how many stand beside it depends on the belief in it (see `Cape`).
        `window`: newest tokens of a text that the head sees.
        Raises ConfigError for values that make no sense, ModelError for a folder without a head.
        """
        _check("dtype", dtype in DTYPES, dtype, f"one of {', '.join(DTYPES)}")
        self.trees = TreeSettings.checked(
            _NAME,
            trees,
            max_depth=max_depth,
            top_k=top_k,
            min_confidence=min_confidence,
            branching=branching,
        )
        _check("window", window >= LEAST_WINDOW, window, f"at least {LEAST_WINDOW} tokens")
        if not isinstance(head, EagleHead):
            head = checkpoint.load(head, revision=revision)
        self.head = head
        self.dtype = DTYPES[dtype]
        self.window = window

    def for_target(self, target: Target, inputs: InputProcessor | None) -> BoundEagle:
        """The drafter of one target. Raises ConfigError for a head of another one."""
        head = BoundHead(self.head, target, dtype=self.dtype)
        return BoundEagle(self.name, head, target, trees=self.trees, window=self.window)
