"""A drafter that reads hidden states: it keeps what the engine hands it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from matrix import model_of
from torch import Tensor

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.base import Drafter, DraftSession
from mmspec.requests import Request
from mmspec.state import Prefill, Prompt, Scores, Taps, Verdict
from mmspec.tree import TokenTree


@dataclass
class Heard:
    """Of one request: what its prompt and the accepted nodes of its steps said."""

    prompt: Mapping[int, Tensor]  # layer -> (seq, hidden)
    steps: list[tuple[int, Mapping[int, Tensor]]] = field(default_factory=list)  # (index in the
    # text of the first row, layer -> (accepted nodes, hidden))


class Listener:
    """Proposes what another drafter does, and listens."""

    name = "listener"

    def __init__(self, layers: Sequence[int], drafts: Drafter, *, whole_prompt: bool = False):
        self.taps = Taps(frozenset(layers), whole_prompt)
        self.heard: dict[tuple[int, ...], Heard] = {}  # by the prompt's tokens
        self._drafts = drafts

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> "ListenerSession":
        heard = self.heard[tuple(prompt.token_ids.tolist())] = Heard(prefill.hidden)
        session = self._drafts.start(prompt, prefill, guide)
        return ListenerSession(session, heard, prompt.num_tokens)


class ListenerSession:
    def __init__(self, session: DraftSession, heard: Heard, num_tokens: int) -> None:
        self._session = session
        self._heard = heard
        self._num_tokens = num_tokens  # of prompt and text in the cache

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        return self._session.propose(tokens, budget)

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        self._session.observe(tree, verdict, scores)
        states = {layer: s[list(verdict.path)].clone() for layer, s in scores.hidden.items()}
        self._heard.steps.append((self._num_tokens, states))
        self._num_tokens += len(verdict.path)

    def close(self) -> None:
        self._session.close()


def native(family: str, request: Request, text: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Of each layer (seq, hidden), by one forward of the model alone over prompt and text."""
    inputs: dict[str, Tensor] = {}
    assert isinstance(request.prompt, Mapping)
    seq = request.prompt["input_ids"].shape[1]
    for name, value in request.prompt.items():
        value = value.double() if value.is_floating_point() else value
        if value.shape[:2] == (1, seq):  # marks a token each: the text's are ordinary ones
            rest = torch.tensor([text]) if name == "input_ids" else torch.zeros(1, len(text))
            rest = torch.ones(1, len(text)) if name == "attention_mask" else rest
            if value.ndim > 2:  # which images a token sees
                rest = value[:, -1:].expand(-1, len(text), -1, -1)
            value = torch.cat([value, rest.to(value.dtype)], dim=1)
        inputs[name] = value
    with torch.no_grad():
        states = model_of(family, "float64")(**inputs, output_hidden_states=True).hidden_states
    return tuple(state[0] for state in states)
