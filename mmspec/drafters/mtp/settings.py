"""Mtp: the target's own layer for the tokens to come, and how its trees grow."""

from functools import partial
from typing import Unpack

import torch

from mmspec.drafters.eagle.drafter import BoundEagle
from mmspec.drafters.eagle.settings import DTYPES, LEAST_WINDOW
from mmspec.drafters.growing.cape import BranchingName
from mmspec.drafters.growing.settings import TreeOptions, TreeSettings
from mmspec.drafters.mtp.head import MtpHead
from mmspec.errors import ConfigError, ModelError, check_setting
from mmspec.inputs import InputProcessor
from mmspec.kernels import says_lost, says_used_up
from mmspec.target import Target

_NAME = "drafter.mtp"
_check = partial(check_setting, _NAME)


class Mtp:
    """Multi-token prediction (DeepSeek-V3, arXiv 2412.19437 section 2.2): the first of a model's
    layers for the tokens to come is asked again and again, level by level of a tree."""

    name = "mtp"

    def __init__(
        self,
        path: str = "",
        *,
        revision: str | None = None,
        dtype: str = "auto",
        max_depth: int = 4,
        top_k: int = 4,
        min_confidence: float = 0.1,
        branching: BranchingName = "best",
        window: int = 4096,
        **trees: Unpack[TreeOptions],
    ) -> None:
        """`path`: a folder or hub name (`revision`) with the layer's weights; "": the target's own,
        as it was loaded. `dtype`: it is computed in, "auto" the target's.

        `top_k` children a node and nodes a level, down to `max_depth`, as long as a path is
        believed to be accepted with `min_confidence`. With branching="cape" one node a level goes
        on, and how many stand beside it depends on the belief in it (see `Cape`).
        `window`: newest tokens of a text that the layer sees.
        Raises ConfigError for values that make no sense.
        """
        _check("dtype", dtype in DTYPES, dtype, f"one of {', '.join(DTYPES)}")
        _check("window", window >= LEAST_WINDOW, window, f"at least {LEAST_WINDOW} tokens")
        self.trees = TreeSettings.checked(
            _NAME,
            trees,
            max_depth=max_depth,
            top_k=top_k,
            min_confidence=min_confidence,
            branching=branching,
        )
        self.path = path
        self.revision = revision
        self.dtype = DTYPES[dtype]
        self.window = window

    def for_target(self, target: Target, inputs: InputProcessor | None) -> BoundEagle:
        """The drafter of one target. Raises ModelError where there is no such layer, ConfigError
        for one of another target, or where nobody knows where the target came from."""
        config = target.model.config
        path, revision = self.path, self.revision
        if not path:
            path, revision = config.name_or_path, getattr(config, "_commit_hash", None)
        if not path:
            raise ConfigError(
                f'{_NAME}.path="": the target was not loaded from a folder or a hub name; expected '
                "the one that has its weights"
            )
        head = MtpHead(target, path, revision=revision, dtype=self.dtype)
        bound = BoundEagle(self.name, head, target, trees=self.trees, window=self.window)
        _try(bound, target)
        return bound


def _try(drafter: BoundEagle, target: Target) -> None:
    """Reads two tokens. Raises ModelError for a layer that expects more than tokens and a state of
    each, such as several streams of states."""
    head, cache = drafter.head, drafter.cache
    width = target.model.config.get_text_config(decoder=True).hidden_size
    features = torch.zeros(2, width, dtype=head.dtype, device=head.device)
    row = cache.open(2)
    try:
        drafter.read(row, [0, 0], features, torch.zeros(head.planes, 2, dtype=torch.long))
    except Exception as error:  # of many kinds, by how the family computes
        if says_used_up(error) or says_lost(error):
            raise
        raise ModelError(
            f"{_NAME}: the layer of {type(target.model).__name__} does not compute by a state and "
            f"a token alone ({error}); take another drafter"
        ) from error
    finally:
        cache.release()
