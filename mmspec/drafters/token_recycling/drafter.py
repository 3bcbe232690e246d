"""TokenRecycling: what the user sets, and whose successors a request sees."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import cast

from mmspec.calibration import Calibration
from mmspec.draft_guide import DraftGuide
from mmspec.drafters.base import DraftSession
from mmspec.drafters.token_recycling.session import RecyclingSession, settle
from mmspec.drafters.token_recycling.successors import Successors
from mmspec.errors import check_setting
from mmspec.inputs import InputProcessor
from mmspec.state import Prefill, Prompt
from mmspec.target import Target
from mmspec.tree import TokenTree

_MOST_NAMESPACES = 8  # whose successors are kept, the newest used


class TokenRecycling:
    """Drafts from the target's own second thoughts; nothing to train or load."""

    name = "token_recycling"

    def __init__(
        self,
        *,
        top_k: int = 8,
        max_depth: int = 8,
        min_confidence: float = 0.001,
        contexts: int = 65_536,
    ) -> None:
        """`top_k` tokens are kept of each of the newest `contexts` of a namespace, some 500 bytes
        each. A node is proposed if its whole path, `max_depth` at most, is accepted with at least
        `min_confidence`. Raises ConfigError for values that make no sense."""
        check = partial(check_setting, "drafter.token_recycling")
        check("top_k", top_k >= 1, top_k, "1 or more")
        check("max_depth", max_depth >= 1, max_depth, "1 or more")
        check("min_confidence", 0 <= min_confidence <= 1, min_confidence, "in [0, 1]")
        check("contexts", contexts >= 1, contexts, "1 or more")
        self.top_k = top_k
        self.max_depth = max_depth
        self.min_confidence = min_confidence
        self.contexts = contexts
        self.calibration = Calibration(decay=0.998)  # of all requests: rates, no request's text
        self._kept: OrderedDict[str, Successors] = OrderedDict()  # of the namespaces
        self._lock = threading.Lock()

    def for_target(self, target: Target, inputs: InputProcessor | None) -> "TokenRecycling":
        """One that keeps what this target says: another one's words are other words."""
        return TokenRecycling(
            top_k=self.top_k,
            max_depth=self.max_depth,
            min_confidence=self.min_confidence,
            contexts=self.contexts,
        )

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> RecyclingSession:
        k = min(self.top_k, prefill.logits.shape[0])
        return RecyclingSession(self, guide, self._successors(prompt.namespace, k))

    def propose_together(
        self, sessions: Sequence[DraftSession], texts: Sequence[Sequence[int]], budget: int
    ) -> list[TokenTree]:
        """One tree a session; what the target said of all of them is read in one go."""
        own = cast("Sequence[RecyclingSession]", sessions)
        settle(own)
        return [session.propose(tokens, budget) for session, tokens in zip(own, texts, strict=True)]

    def forget(self, namespace: str | None = None) -> None:
        """Drops what requests of a namespace have left, or of all."""
        with self._lock:
            if namespace is None:
                self._kept.clear()
            else:
                self._kept.pop(namespace, None)

    def _successors(self, namespace: str | None, k: int) -> Successors:
        """What requests of the namespace share; of None: the request's own."""
        fresh = partial(Successors, self.contexts, k)
        if namespace is None:
            return fresh()
        with self._lock:
            kept = self._kept.pop(namespace, None)
            self._kept[namespace] = kept = fresh() if kept is None else kept
            if len(self._kept) > _MOST_NAMESPACES:
                self._kept.popitem(last=False)
        return kept
