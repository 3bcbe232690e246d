"""Medusa: heads for a target, and how their trees are to grow."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mmspec.drafters.growing.settings import Draw, TreeSettings
from mmspec.drafters.heads import TargetEnds
from mmspec.drafters.medusa.checkpoint import load
from mmspec.drafters.medusa.drafter import BoundMedusa
from mmspec.drafters.medusa.module import MedusaHead
from mmspec.errors import ConfigError, check_setting
from mmspec.inputs import InputProcessor
from mmspec.target import Target

_NAME = "drafter.medusa"
_check = partial(check_setting, _NAME)


class Medusa:
    """Heads that say tokens further on from the state that chose the newest one: one forward of
    them a proposal, however deep the tree."""

    name = "medusa"

    def __init__(
        self,
        head: MedusaHead | str | Path,
        *,
        revision: str | None = None,
        max_depth: int | None = None,
        top_k: int = 10,
        min_confidence: float = 0.05,
        tree: Sequence[Sequence[int]] = (),
        draw: Draw = "coupled",
        profile: Sequence[int] = (),
    ) -> None:
        """`head`: a folder or hub name as `checkpoint` reads it, or the heads themselves.

        `top_k` tokens of each head down to `max_depth` (None: of all heads), any path of them that
        is believed to be accepted with `min_confidence`. `tree` is a fixed one instead, as the
        authors publish them (`medusa_choices`): each path is its nodes' ranks at their heads, the
        best 0; of a smaller budget it is the first paths. With draw="sample", for rules that divide
        by q, `profile[d]` tokens are drawn below each node of depth d; empty: a chain.
        Raises ConfigError for values that make no sense."""
        self.head = head if isinstance(head, MedusaHead) else load(head, revision=revision)
        heads = self.head.config.num_heads
        depth = heads if max_depth is None else max_depth
        _check("max_depth", 1 <= depth <= heads, max_depth, f"1 to {heads}, the heads there are")
        is_profile = all(n >= 1 for n in profile) and len(profile) <= heads
        _check(
            "profile", is_profile, list(profile), f"children a node, >= 1, for up to {heads} heads"
        )
        paths = [tuple(path) for path in tree]
        _check(
            "tree",
            _is_tree(paths, depth),
            list(tree),
            f"paths of up to {depth} ranks from 0 on, each with those above it",
        )
        self.tree = tuple(dict.fromkeys(paths))
        _check("top_k", top_k >= 1, top_k, "at least 1")
        self.trees = TreeSettings.checked(
            _NAME,
            {"draw": draw, "profile": profile},
            max_depth=depth,
            top_k=max((max(path) + 1 for path in paths), default=top_k),
            min_confidence=min_confidence,
        )

    def for_target(self, target: Target, inputs: InputProcessor | None) -> BoundMedusa:
        """The drafter of one target. Raises ConfigError where the heads are another's."""
        config, ends = self.head.config, TargetEnds(target)
        _check_fit("hidden_size", config.hidden_size, ends.hidden_size, config.base_model)
        if config.vocab_size is not None:
            _check_fit("vocab_size", config.vocab_size, ends.vocab_size, config.base_model)
        return BoundMedusa(self, target, ends)


def _is_tree(paths: Sequence[tuple[int, ...]], depth: int) -> bool:
    known = set(paths) | {()}
    return all(0 < len(path) <= depth and min(path) >= 0 and path[:-1] in known for path in paths)


def _check_fit(name: str, got: int, expected: int, base_model: str) -> None:
    if got != expected:
        raise ConfigError(
            f"drafter.medusa: heads of {name} {got}, the target has {expected}; take heads that "
            f"were trained for this target{f' (these were for {base_model})' if base_model else ''}"
        )
