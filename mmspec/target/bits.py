"""Whether a model's logits keep their bits in score calls of one shape: tried, not believed.

Its linear layers and norms are a library's: they usually sum up a row in one order, wherever it
stands in a call of one shape, but nobody promises it.
"""

import torch

from mmspec.state import Prompt
from mmspec.target.target import Target
from mmspec.tree import TokenTree

_PARENTS = (-1, 0, 0, 1, 1, 3)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_PREFIX_TOKENS = 61  # so that a path crosses the border of a block of positions


def differing_node(target: Target, *, rows: int, nodes: int) -> str | None:
    """The first node of a small tree whose logits have other bits than after its path is committed
    a token at a time, in another row; None where there is none."""
    fixed = target.bitwise(rows=rows, nodes=nodes)
    draw = torch.Generator().manual_seed(0)
    low, high = target.vocab_size // 4, max(target.vocab_size * 3 // 4, target.vocab_size // 4 + 8)
    ids = torch.randint(low, high, (_PREFIX_TOKENS,), generator=draw)
    drawn = torch.randperm(high - low, generator=draw)[: len(_PARENTS)] + low
    count = len(_PARENTS)
    whole = TokenTree(tuple(drawn.tolist()), _PARENTS, (1.0,) * count, ("",) * count)
    tree = whole.keep(range(min(count, nodes)))
    cache = fixed.new_cache()
    cached = [fixed.prefill(Prompt(ids), cache, cache.open(128)).placement for _ in range(2)]
    together = [whole.keep([0]), tree][-rows:]
    scored = fixed.score(together, cache, cached[:1] * (rows == 1) or cached)[-1].logits
    leaves = set(range(tree.num_nodes)) - set(tree.parents)
    for leaf in sorted(leaves):
        row = cache.open(128)
        placement = fixed.prefill(Prompt(ids), cache, row).placement
        for node in tree.path_to(leaf):
            alone = fixed.score([TokenTree.root(tree.tokens[node])], cache, [placement])[0].logits
            if not torch.equal(alone[0], scored[node]):
                return f"node {node} of the probe's tree"
            cache.commit({row: [0]})
        cache.close(row)
    return None


def has_experts(target: Target) -> bool:
    """Whether tokens are gathered by what they are routed to."""
    config = target.model.config.get_text_config(decoder=True)
    return any((getattr(config, name, None) or 0) > 1 for name in _EXPERTS)
