"""token_recycling: what the target held likely in a step is drafted where the text comes to the
same words again (Luo et al., arXiv 2408.08696).

1. `drafter`    how much is kept, and whose
2. `successors` the likeliest tokens behind the last two, as the target said last
3. `session`    one request: a tree of them, under the noise that the target will choose with
4. `likeliest`  the largest of a vocabulary's logits
"""

from mmspec.drafters.token_recycling.drafter import TokenRecycling

__all__ = ["TokenRecycling"]
