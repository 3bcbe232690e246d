"""CompressedKV: what of its own KV the target sees when it drafts, and how its trees grow."""

from collections.abc import Callable
from functools import partial
from typing import Unpack

from mmspec.drafters.compressed_kv.drafter import BoundCompressedKV
from mmspec.drafters.growing.cape import BranchingName
from mmspec.drafters.growing.settings import TreeOptions, TreeSettings
from mmspec.errors import ConfigError, check_setting
from mmspec.inputs import InputProcessor
from mmspec.kv import ViewSize
from mmspec.kv.policies import POLICIES, Composed, Policy
from mmspec.target import Target

Forward = Callable[[Target], Target]

_NAME = "drafter.compressed_kv"
_check = partial(check_setting, _NAME)


class CompressedKV:
    """Self-drafting from a compressed cache: no second model, no training (TriForce, arXiv
    2404.11912; MagicDec, arXiv 2408.11049). It pays where a step's cost is its context's."""

    name = "compressed_kv"

    def __init__(
        self,
        *,
        policy: str | Policy = "snapkv",
        budget: int = 1024,
        recent: int = 64,
        max_share: float = 0.1,
        max_depth: int = 6,
        top_k: int = 1,
        width: int = 1,
        min_confidence: float = 0.3,
        branching: BranchingName = "best",
        forward: Forward | None = None,
        **trees: Unpack[TreeOptions],
    ) -> None:
        """`policy` is a name, several joined by "+" (each has an equal share of the budget), or an
        object. `budget` tokens are chosen by it; up to `recent` newer ones join before it chooses
        anew. A view takes at most `max_share` of its text's KV (1: no bound); a text too short for
        that is not drafted for.
        `top_k` children a node, and `width` nodes a level that get children, down to `max_depth`,
        as long as a path is believed to be accepted with `min_confidence`. With branching="cape"
        one node a level goes on, and how many stand beside it depends on the belief in it (see
        `Cape`).
        `forward` makes of the target what runs over the view in its place, with the same keys: its
        layers with other weights, or fewer of them; None: the target itself.
        Raises ConfigError for values that make no sense.
        """
        _check("budget", budget >= 8, budget, "at least 8 tokens")
        _check("recent", recent >= 1, recent, "at least 1 token")
        _check("max_share", 0 < max_share <= 1, max_share, "in (0, 1]")
        self.trees = TreeSettings.checked(
            _NAME,
            trees,
            max_depth=max_depth,
            top_k=top_k,
            width=width,
            min_confidence=min_confidence,
            branching=branching,
        )
        _check("width", 1 <= width <= top_k**max_depth, width, "1 to the nodes of a level")
        self.policy = policy_named(policy) if isinstance(policy, str) else policy
        self.forward = forward
        self.size = ViewSize(budget, recent, self._most_written(), max_share)

    def for_target(self, target: Target, inputs: InputProcessor | None) -> BoundCompressedKV:
        """The drafter of one target."""
        return BoundCompressedKV(self, target)

    def _most_written(self) -> int:
        """Nodes that a draft writes behind the view, node 0 among them."""
        trees = self.trees
        best = 1 + trees.width * (trees.max_depth - 1)
        if not trees.draws:
            return best
        nodes = level = 1
        for children in trees.profile[:-1]:
            level *= children
            nodes += level
        return max(nodes, best)  # a greedy request's tree follows the best, as coupled


def policy_named(name: str) -> Policy:
    """The policy of a name, or of several joined by "+". Raises ConfigError."""
    names = name.split("+")
    for one in names:
        if one not in POLICIES:
            raise ConfigError(
                f"{_NAME}.policy={name!r}: expected one, or several (joined by +), of "
                f"{', '.join(sorted(POLICIES))}"
            )
    parts = [POLICIES[one]() for one in names]
    return parts[0] if len(parts) == 1 else Composed(parts)
