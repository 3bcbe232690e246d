"""Row: one request on its way through the decode loop, and all of its state."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

from torch import Tensor

from mmspec.drafters.base import Drafter, DraftSession
from mmspec.drafters.none import NoDrafter
from mmspec.errors import DecodeError, MmspecError
from mmspec.sampling import Sampler
from mmspec.state import Placement, Prefill, Prompt, Scores, Verdict
from mmspec.stats import StatsRecorder
from mmspec.stream import Piece, TextStream
from mmspec.tree import TokenTree
from mmspec.verify import Verifier

logger = logging.getLogger(__name__)

FinishReason = Literal["eos", "stop", "length", "error", "closed"]
T = TypeVar("T")


class Row:
    """Chooses its tokens (it is the verifier's Chooser), ends its text, records its stats.

    Invariant while it is decoded: its committed KV = prompt + chosen tokens - 1.
    """

    def __init__(
        self,
        prompt: Prompt,
        sampler: Sampler,
        text: TextStream,
        drafter: Drafter,
        *,
        eos_token_ids: frozenset[int],
        max_new_tokens: int,
        index: int = 0,
        namespace: str | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
    ) -> None:
        self.prompt = prompt
        self.sampler = sampler
        self.index = index  # which of the call's requests it is
        self.max_new_tokens = max_new_tokens
        self.namespace = namespace  # what of the stores it may use; None: nothing
        self.on_prefill = on_prefill  # told of prompt tokens done, and of how many there are
        self.tokens: list[int] = prompt.token_ids.tolist()  # the prompt's and the chosen ones
        self.finish_reason: FinishReason | None = None
        self.error: MmspecError | None = None
        self.stats = StatsRecorder(prompt_tokens=prompt.num_tokens)
        self._placement: Placement | None = None
        self._text = text
        self._eos_token_ids = eos_token_ids
        self._drafter = drafter
        self._session: DraftSession = NoDrafter()
        self._drafted_by: list[str | None] = []  # of each chosen token; None: the target itself

    # The stages of the loop

    def begin(self, prefill: Prefill) -> None:
        """The prompt's last logits choose the first token, node 0 of the first step."""
        self._placement = prefill.placement
        self.choose(prefill.logits)
        self._drafted_by.append(None)
        with self._drafting():
            self._session = self._drafter.start(self.prompt, prefill)

    def propose(self, budget: int, fit: Callable[[TokenTree], TokenTree], vocab: int) -> TokenTree:
        """The drafter's tree, cut to what the text still has room for and made `fit` for the
        target. A drafter that fails is left out from then on."""
        root = TokenTree.root(self.tokens[-1])
        room = self.max_new_tokens - self.num_chosen - 1  # the target adds one of its own
        if room == 0 or budget == 0:
            return root
        with self._drafting():
            tree = self._session.propose(self.tokens.copy(), budget)
            tree.check_integrity(vocab)
            if tree.tokens[0] != self.tokens[-1]:
                raise ValueError(f"node 0 is {tree.tokens[0]}, the last token {self.tokens[-1]}")
            return fit(tree.cut(room).prune(budget))
        return root

    def verify(self, rule: Verifier, tree: TokenTree, scores: Scores) -> Verdict | None:
        """What the target accepts of the tree; None if choosing failed, and with it the row."""
        verdict = self.attempt(lambda: rule(tree, scores.logits, self))
        if verdict is not None:
            self._drafted_by += [tree.drafters[node] for node in verdict.path[1:]]
        self._drafted_by += [None] * (self.num_chosen - len(self._drafted_by))
        return verdict

    def observe(self, tree: TokenTree, verdict: Verdict | None, scores: Scores) -> None:
        """Tells the drafter what became of its tree, and keeps count."""
        if verdict is not None:
            self.stats.record_step(tree, verdict)
            if not self.is_done:
                with self._drafting():
                    self._session.observe(tree, verdict, scores)

    @property
    def placement(self) -> Placement:
        """Where its KV lives, once it is prefilled."""
        assert self._placement is not None, "the row is not prefilled"
        return self._placement

    @property
    def is_prefilled(self) -> bool:
        return self._placement is not None

    # Choosing

    @property
    def is_greedy(self) -> bool:
        return self.sampler.is_greedy

    @property
    def is_done(self) -> bool:
        return self.finish_reason is not None

    @property
    def num_chosen(self) -> int:
        return len(self.tokens) - self.prompt.num_tokens

    @property
    def chosen(self) -> list[int]:
        """The generated tokens."""
        return self.tokens[self.prompt.num_tokens :]

    def choose(self, logits: Tensor) -> int:
        """The target's next token, given its raw logits (vocab,); may end the text."""
        token = self.sampler.choose(logits)
        self.tokens.append(token)
        self._text.push(token)
        if token in self._eos_token_ids:
            self._finish("eos")
        elif self._text.is_stopped:
            self._finish("stop")
        elif self.num_chosen == self.max_new_tokens:
            self._finish("length")
        return token

    # Ending

    def attempt(self, stage: Callable[[], T]) -> T | None:
        """Runs a stage; an error in it ends this row, and no other."""
        try:
            return stage()
        except MmspecError as error:
            self.fail(error)
        except Exception as error:  # raised again by Engine.generate, or shown in Result.error
            failure = DecodeError(
                f"after {self.num_chosen} tokens: {type(error).__name__}: {error}"
            )
            failure.__cause__ = error
            self.fail(failure)
        return None

    def fail(self, error: MmspecError) -> None:
        """Ends the row with an error; the tokens chosen so far stay."""
        self.error = error
        self._finish("error")

    def close(self) -> None:
        """The request ended, or nobody waits for it any more."""
        if not self.is_done:
            self._finish("closed")
        session, self._session = self._session, NoDrafter()
        session.close()

    def take_pieces(self) -> list[Piece]:
        """The text that has become certain since the last call, by who drafted it."""
        return [Piece(text, self._drafted_by[token]) for text, token in self._text.take()]

    def _finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        self._text.finish()

    @contextmanager
    def _drafting(self) -> Iterator[None]:
        """A drafter must never cost a text: one that fails within is left out from then on."""
        try:
            yield
        except Exception as error:  # logged with its traceback; plain decoding goes on
            logger.warning(
                "drafter %s failed (%s: %s); this request goes on without it, its text is the same",
                self._drafter.name,
                type(error).__name__,
                error,
                exc_info=error,
            )
            self._session = NoDrafter()
