"""What the decode loop asks of a drafter."""

from collections.abc import Sequence
from typing import Protocol

from mmspec.state import Prefill, Prompt, Scores, Verdict
from mmspec.tree import TokenTree


class DraftSession(Protocol):
    """One request's drafting. Holds all of its state; closed when the request ends."""

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        """A tree below node 0 = `tokens[-1]` with at most `budget` drafted nodes; `tokens` are the
        prompt's and the chosen ones. Where there is nothing worth scoring: `TokenTree.root`."""

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        """What became of the proposed tree."""

    def close(self) -> None:
        """The request ended, or failed."""


class Drafter(Protocol):
    """Starts sessions. Shared by all requests of an engine, so it holds no request's state."""

    name: str

    def start(self, prompt: Prompt, prefill: Prefill) -> DraftSession: ...
