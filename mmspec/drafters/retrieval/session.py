"""RetrievalSession: one request's text, its hidden state, and what it has shown of copies."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from mmspec.drafters.copying import Copier
from mmspec.drafters.own_text import OwnText, prompt_tokens
from mmspec.drafters.retrieval.source import Query
from mmspec.retrieval import Continuation
from mmspec.state import Prefill, Preparation, Prompt, Scores, Verdict
from mmspec.target.taps import LateHidden
from mmspec.tree import TokenTree

if TYPE_CHECKING:
    from mmspec.drafters.retrieval.drafter import BoundRetrieval

_LEAD = 8  # tokens of the prompt that a kept text begins with: its first words can be found by them


class RetrievalSession:
    """Asks through its drafter, so that a look-up is made for all rows together."""

    def __init__(self, drafter: "BoundRetrieval", prompt: Prompt, prefill: Prefill) -> None:
        self._drafter = drafter
        self._namespace = prompt.namespace
        self._text = OwnText(prompt, min_match=drafter.limits.min_match)
        self._lead = prompt_tokens(prompt)[-_LEAD:]
        # Where the states are found, once a look-up asks for them: copies, as a prompt's are many.
        self._layers = drafter.taps.layers
        self._hidden: Mapping[int, Tensor] = {
            layer: prefill.hidden[layer][-1].clone() for layer in self._layers
        }
        self._copier = Copier(
            drafter.name,
            min_confidence=drafter.limits.min_confidence,
            shared=drafter.calibration,
            was_useful=drafter.was_useful if drafter.learns else None,
        )

    def preparation(self, num_tokens: int) -> Preparation | None:
        return self._text.preparation(num_tokens)

    def prepare(self, tokens: Sequence[int]) -> None:
        self._text.grow(tokens)

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        return self._drafter.propose_together([self], [tokens], budget)[0]

    def query(self, tokens: Sequence[int]) -> Query:
        """The place that `tokens`, the prompt's and the chosen ones, end at."""
        self._text.grow(tokens)
        return Query(self._text, self._namespace, self._hidden)

    def draft(self, token: int, found: Sequence[Continuation], budget: int) -> TokenTree:
        """What was found, as a tree below `token`."""
        return self._copier.draft(token, found, budget)

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        self._copier.observe(verdict.tokens)
        if self._layers:  # the state behind the last one chose the newest token
            states, last = scores.hidden, verdict.path[-1]
            known = self._layers & states.keys()
            self._hidden = LateHidden({n: partial(_state, states, n, last) for n in known})

    def take_back(self, num_tokens: int) -> None:
        self._text.take_back(num_tokens)
        self._copier.take_back()

    def learn(self, chosen: Sequence[int]) -> None:
        if self._drafter.learns and self._namespace is not None and chosen:
            self._drafter.learn([*self._lead, *chosen], self._namespace)

    def close(self) -> None:
        pass


def _state(states: Mapping[int, Tensor], layer: int, node: int) -> Tensor:
    return states[layer][node]
