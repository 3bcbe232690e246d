"""lookahead: the target guesses ahead of itself while it verifies (Fu et al., arXiv 2402.02057).

1. `drafter`   how wide the window is, how long its n-grams
2. `session`   one request: n-grams that were found and the window, as one tree
3. `window`    tokens yet to come, iterated upon in parallel (Jacobi)
4. `pool`      the n-grams that came of it
5. `trie`      both as a proposal
6. `harvest`   whether the window brings more than it costs
"""

from mmspec.drafters.lookahead.drafter import Lookahead

__all__ = ["Lookahead"]
