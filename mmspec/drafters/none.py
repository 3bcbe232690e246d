"""No drafter: plain decoding, through the same loop."""

from collections.abc import Sequence

from mmspec.state import Prefill, Prompt, Scores, Verdict
from mmspec.tree import TokenTree


class NoDrafter:
    """Proposes node 0 alone. It is its own session, for it has no state."""

    name = "none"

    def start(self, prompt: Prompt, prefill: Prefill) -> "NoDrafter":
        return self

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        return TokenTree.root(tokens[-1])

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        pass

    def close(self) -> None:
        pass
