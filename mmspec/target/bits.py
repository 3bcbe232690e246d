"""Whether a model's logits keep their bits in score calls of one shape: tried, not believed.

Its linear layers and norms are a library's: they usually sum up a row in one order, wherever it
stands in a call of one shape, but nobody promises it.
"""

import torch
from torch import Tensor

from mmspec.state import Prompt
from mmspec.target.families import rope_border
from mmspec.target.target import Target
from mmspec.tree import TokenTree

_PARENTS = (-1, 0, 0, 1, 1, 3)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_PREFIX_TOKENS = 61  # so that a path crosses the border of a block of positions


def reason_against(target: Target) -> str | None:
    """Why the model cannot keep its bits, as what follows its name; None where nothing is known to
    be in the way. Of what a trial could miss: it depends on which tokens there are."""
    config = target.model.config
    if target.cross_layers:
        return (
            "reads images through cross-attention layers, whose keys are as many as its neighbours "
            "in a step have"
        )
    if target.state_kinds:
        return (
            "keeps running states, which are computed for all nodes of a depth at once: how many "
            "those are, and so how they are rounded, depends on the tree"
        )
    if _has_experts(target):
        return (
            "is a mixture of experts: how many tokens an expert reads at once, and so how their "
            "sums are rounded, depends on the other tokens of a step"
        )
    if (border := rope_border(config)) is not None:
        return (
            f"rotates all texts of a step anew once one of them is longer than {border} tokens: "
            "a draft, or a neighbour, can be the one"
        )
    if getattr(target.model, "is_quantized", False) and not _is_weight_only(config):
        return (
            "is quantised by kernels that may scale a token by the others of a step, or add up in "
            "no fixed order; expected full weights, or bitsandbytes in 4 bits"
        )
    return None


def differing_node(target: Target, *, rows: int, nodes: int) -> str | None:
    """The first node found whose logits have other bits than at another place of the call, or than
    after its path is committed a token at a time, as what follows the model's name; None where
    there is none. Tried are all places of the shape."""
    fixed = target.bitwise(rows=rows, nodes=nodes)
    fixed.graphs = None  # each is held against the forward itself before it is used
    draw = torch.Generator().manual_seed(0)
    low, high = target.vocab_size // 4, max(target.vocab_size * 3 // 4, target.vocab_size // 4 + 8)
    most = _PREFIX_TOKENS + len(_PARENTS) if target.max_positions is None else target.max_positions
    length = max(min(_PREFIX_TOKENS, most - len(_PARENTS)), 1)
    prompt = Prompt(torch.randint(low, high, (length,), generator=draw))
    drawn = (torch.randperm(high - low, generator=draw)[: len(_PARENTS)] + low).tolist()
    place = _differing_place(fixed, prompt, drawn, rows=rows, nodes=nodes)
    if place is not None:
        return f"gives {place} other bits than at another place of the step{_LIBRARY}"
    tree = _tree(drawn, _PARENTS).keep(range(min(len(drawn), nodes)))
    node = _differing_path(fixed, prompt, tree, rows=rows)
    if node is not None:
        return f"gives node {node} of a small tree other bits than alone{_LIBRARY}"
    return None


_LIBRARY = " (some matrix libraries do so)"


def _differing_place(
    fixed: Target, prompt: Prompt, tokens: list[int], *, rows: int, nodes: int
) -> str | None:
    """The same text in every row and below it the same token at every node."""
    cache = fixed.new_cache()
    placed = [
        fixed.prefill(prompt, cache, cache.open(prompt.num_tokens + nodes + 2)).placement
        for _ in range(rows)
    ]
    parents = (-1, *[0] * (nodes - 1))
    tree = _tree([tokens[0], *[tokens[1]] * (nodes - 1)], parents)
    scores = fixed.score([tree] * rows, cache, placed)
    own = placed[0].row
    cache.commit({own: [0]})
    alone = fixed.score([TokenTree.root(tokens[1])], cache, placed[:1])[0].logits[0]
    for row, score in enumerate(scores):
        if not torch.equal(score.logits[0], scores[0].logits[0]):
            return f"node 0 of row {row}"
        for node in _other(score.logits[1:], alone):
            return f"node {node + 1} of row {row}"
    return None


def _other(logits: Tensor, expected: Tensor) -> list[int]:
    """The nodes of (nodes, vocab) that are not as expected."""
    differing: list[int] = (logits != expected).any(dim=1).nonzero().flatten().tolist()
    return differing


def _differing_path(fixed: Target, prompt: Prompt, tree: TokenTree, *, rows: int) -> int | None:
    """A tree, in the last of two rows where there are two, and its paths token by token."""
    cache = fixed.new_cache()
    placed = [fixed.prefill(prompt, cache, cache.open(128)).placement for _ in range(2)]
    together = [tree.keep([0]), tree][-rows:]
    scored = fixed.score(together, cache, placed[:1] * (rows == 1) or placed)[-1].logits
    leaves = set(range(tree.num_nodes)) - set(tree.parents)
    for leaf in sorted(leaves):
        row = cache.open(128)
        placement = fixed.prefill(prompt, cache, row).placement
        for node in tree.path_to(leaf):
            alone = fixed.score([TokenTree.root(tree.tokens[node])], cache, [placement])[0].logits
            if not torch.equal(alone[0], scored[node]):
                return node
            cache.commit({row: [0]})
        cache.close(row)
    return None


def _tree(tokens: list[int], parents: tuple[int, ...]) -> TokenTree:
    return TokenTree(tuple(tokens), parents, (1.0,) * len(tokens), ("",) * len(tokens))


def _has_experts(target: Target) -> bool:
    """Whether tokens are gathered by what they are routed to."""
    config = target.model.config.get_text_config(decoder=True)
    counts = [getattr(config, name, None) or 0 for name in _EXPERTS]  # one a layer, in some
    most = [max(count) if isinstance(count, list | tuple) else count for count in counts]
    names = (name.rpartition(".")[2] for name, _ in target.model.named_modules())
    return max(most) > 1 or "experts" in names


def _is_weight_only(config: object) -> bool:
    """Weights that are made full before a product of torch's own."""
    settings = getattr(config, "quantization_config", None)
    if isinstance(settings, dict):
        return bool(settings.get("load_in_4bit"))
    return bool(getattr(settings, "load_in_4bit", False))
