"""LayerSkip: which of its layers a target leaves out when it drafts, and how its trees grow."""

from collections.abc import Sequence
from functools import partial
from typing import Unpack

from mmspec.drafters.growing.cape import BranchingName
from mmspec.drafters.growing.settings import TreeOptions, TreeSettings
from mmspec.drafters.layer_skip.drafter import BoundLayerSkip
from mmspec.errors import check_setting
from mmspec.inputs import InputProcessor
from mmspec.target import Target
from mmspec.target.quantised import Weights, check_weights

_NAME = "drafter.layer_skip"
_check = partial(check_setting, _NAME)


class LayerSkip:
    """Self-drafting by fewer layers: no second model, no training, no KV of its own (SWIFT, arXiv
    2410.06916). What a draft costs is what it leaves in, so it needs a target with layers to
    spare: deep ones have them, small ones hardly."""

    name = "layer_skip"

    def __init__(
        self,
        *,
        skip: float = 0.45,
        layers: Sequence[int] = (),
        weights: Weights = "same",
        max_depth: int = 6,
        top_k: int = 1,
        min_confidence: float = 0.3,
        branching: BranchingName = "best",
        trials: int = 48,
        trial_tokens: int = 24,
        trial_every: int = 4,
        seed: int = 0,
        **trees: Unpack[TreeOptions],
    ) -> None:
        """`skip` of the layers are left out; which ones is found out while generating, in `trials`
        trials: one at every `trial_every`th proposal, a forward of the layers left in over the
        newest `trial_tokens` that the target chose. `layers`, by index, says it instead: the upper
        ones are an early exit.
        `weights` other than "same": the layers left in draft by a low-bit copy of their weights.
        `top_k` children a node, one node a level goes on, down to `max_depth`, as long as a path is
        believed to be accepted with `min_confidence`. With branching="cape" how many stand beside
        the one that goes on depends on the belief in it (see `Cape`).
        Raises ConfigError for values that make no sense.
        """
        _check("skip", 0 < skip < 1, skip, "in (0, 1)")
        _check("layers", all(n >= 0 for n in layers), list(layers), "indices of layers, from 0")
        self.trees = TreeSettings.checked(
            _NAME,
            trees,
            max_depth=max_depth,
            top_k=top_k,
            width=1,
            min_confidence=min_confidence,
            branching=branching,
        )
        _check("trials", trials >= 0, trials, "0 (an even choice stays) or more")
        self.skip = skip
        self.layers = tuple(layers)
        self.weights = check_weights(weights, f"{_NAME}.weights")
        _check("trial_tokens", trial_tokens >= 1, trial_tokens, "at least 1")
        _check("trial_every", trial_every >= 1, trial_every, "at least 1")
        self.trials = trials
        self.trial_tokens = trial_tokens
        self.trial_every = trial_every
        self.seed = seed

    def for_target(self, target: Target, inputs: InputProcessor | None) -> BoundLayerSkip:
        """The drafter of one target. Raises ConfigError for layers that it does not have,
        ModelError for one whose layers are not found or whose weights cannot be copied."""
        return BoundLayerSkip(self, target)
