"""retrieval: copies what followed in a corpus, in this request's own texts, in earlier outputs.

1. `source`     what a source is asked, and what it answers
2. `suffix`     datastores, by their tokens: the longest end of the text that they hold
3. `online`     this request's prompt, passages and output
4. `generated`  what was generated before, in the request's namespace
5. `session`    one request: its query of each step
6. `drafter`    all rows' queries to all sources; what they found -> one trie -> one tree a row
"""

from mmspec.drafters.retrieval.drafter import Retrieval

__all__ = ["Retrieval"]
