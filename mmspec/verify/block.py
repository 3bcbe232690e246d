"""Block verification on chains: Sun et al., arXiv 2403.10444 algorithm 2."""

import torch
from torch import Tensor

from mmspec.state import Verdict
from mmspec.tree import TokenTree
from mmspec.uploads import upload
from mmspec.verify.base import Chooser
from mmspec.verify.drawn import drawn_from, fair, refuse_undrawn
from mmspec.verify.weighing import Nodes, Weighed


def weigh(nodes: Nodes) -> Weighed:
    """Of whole chains, each from its node 0 to its leaf. The chance of the i-th token is h_i, with
    which the chain down to it is kept whatever became of its beginnings; the longest that is kept
    counts. What is drawn from behind it is max(p_i p - q, 0), behind the whole chain p."""
    p, (q, is_fair) = nodes.p, drawn_from(nodes)
    joint = _joint(nodes, p, q).unsqueeze(1)
    is_last = ~nodes.is_child[:, :1]
    rest = torch.where(is_last, p, (joint * p - q).clamp_min(0.0))
    left = rest.sum(-1, keepdim=True)
    # h_i = left / (left + 1 - p_i). Where both are 0 the rest of the block is kept anyway.
    share = torch.where(left > 0.0, left / (left + (1.0 - joint)), 0.0)
    kept = torch.where(is_last, joint, share)
    # Nothing is left only where p = q but for rounding.
    rest = torch.where(left > 0.0, rest, p)
    return Weighed(torch.where(is_fair[:, :1], kept.roll(-1, 0), torch.nan), rest.log())


def _joint(nodes: Nodes, p: Tensor, q: Tensor) -> Tensor:
    """(nodes,) p_i of the paper: probability that the chain down to a node is worth keeping. It may
    make good by tokens that the target likes better than the drafter what was lost early."""
    depths, chains = [0], [0]
    for above in nodes.drafted[:-1]:
        depths.append(depths[-1] + 1 if above else 0)
        chains.append(chains[-1] if above else chains[-1] + 1)
    places = upload([chains, depths], p.device)
    of_p, of_q = p.new_ones(2, chains[-1] + 1, max(depths) + 1).unbind(0)  # of the next token
    of_p[places[0], places[1]] = p.gather(1, nodes.tokens[:, :1]).squeeze(1)
    of_q[places[0], places[1]] = q.gather(1, nodes.tokens[:, :1]).squeeze(1)
    joint = [p.new_ones(chains[-1] + 1)]
    for depth in range(max(depths)):
        joint.append((joint[-1] * of_p[:, depth] / of_q[:, depth]).clamp(max=1.0))
    return torch.stack(joint, dim=1)[places[0], places[1]]


def block(tree: TokenTree, logits: Tensor, row: Chooser) -> Verdict:
    """Accepts the longest beginning of a chain that its joint probabilities allow: no less than one
    token after the other does. `logits` (nodes, vocab). Looks at the target's distribution at every
    node before it chooses: the request's processors may depend on the tokens alone.

    Keeps the target's distribution, not the seed's own text. Raises ConfigError for a tree that is
    no chain or was not drawn, and for processors that may keep state.
    """
    refuse_undrawn(tree, logits, rule="block", only_chains=True)
    odds = row.weigh(weigh, tree, logits, range(tree.num_nodes), at=0)
    uniforms, length = row.uniforms(tree.num_nodes), 0
    chances = fair((own.chances[0] for own in odds[:-1]), tree, rule="block")
    for node, chance in enumerate(chances, start=1):
        if uniforms[node] < chance:
            length = node
    tokens = list[int]()
    for token, own in zip(tree.tokens[1 : length + 1], odds, strict=False):
        tokens.append(token)
        row.take(token, own)
        if row.is_done:
            return Verdict(tuple(range(len(tokens))), tuple(tokens))
    tokens.append(odds[length].draw())
    row.take(tokens[-1], odds[length])
    return Verdict(tuple(range(len(tokens))), tuple(tokens))
