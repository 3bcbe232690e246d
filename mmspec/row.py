"""Row: one request on its way through the decode loop, and all of its state."""

from collections.abc import Callable, Sequence
from functools import partial
from traceback import clear_frames
from typing import Literal, TypeVar

import torch
from torch import Tensor
from transformers import MaxTimeCriteria, StoppingCriteria

from mmspec.callbacks import call_back
from mmspec.drafting import Drafting
from mmspec.errors import DecodeError, MmspecError
from mmspec.kernels import says_used_up
from mmspec.sampling import Sampler
from mmspec.state import Placement, Prefill, Prompt, Scores, Verdict
from mmspec.stats import StatsRecorder
from mmspec.stream import Piece, TextStream
from mmspec.tree import TokenTree
from mmspec.verify import Odds, Verifier, Weigh
from mmspec.words import counted

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
        drafting: Drafting,
        *,
        eos_token_ids: frozenset[int],
        max_new_tokens: int,
        index: int = 0,
        stopping_criteria: Sequence[StoppingCriteria] = (),
        is_lossless: bool = True,
        namespace: str | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
        is_wanted: Callable[[], bool] | None = None,
    ) -> None:
        """`is_lossless` says of the verifier that its texts have the target's distribution."""
        self.prompt = prompt
        self.sampler = sampler
        self.index = index  # which of the call's requests it is
        self.max_new_tokens = max_new_tokens
        self.namespace = namespace  # what of the stores it may use; None: nothing
        self.on_prefill = on_prefill  # told of prompt tokens done, and of how many there are
        self.tokens: list[int] = prompt.token_ids.tolist()  # the prompt's and the chosen ones
        self.finish_reason: FinishReason | None = None
        self.error: MmspecError | None = None
        self.drafting = drafting
        self.stats = StatsRecorder(
            prompt_tokens=prompt.num_tokens, is_lossless=is_lossless or sampler.is_greedy
        )
        self._placement: Placement | None = None
        self._text = text
        self._eos_token_ids = eos_token_ids
        self._criteria = stopping_criteria
        self._is_wanted = is_wanted
        self._is_closed = False
        self._drafted_by: dict[int, str] = {}  # of chosen tokens; the others are the target's own

    # The stages of the loop

    def begin(self, prefill: Prefill) -> None:
        """The prompt's last logits choose the first token, node 0 of the first step."""
        self._placement = prefill.placement
        self.choose(prefill.logits)
        self.sampler.recorder.settle()
        self.drafting.start(self.prompt, prefill, self.sampler.guide)

    @property
    def on_prompt_logits(self) -> Callable[[int, Tensor], None] | None:
        """Takes (start, logits) of the prompt's tokens at the prefill, where they are wanted."""
        recorder = self.sampler.recorder
        if not recorder.wants_prompt:
            return None
        return lambda start, logits: recorder.record_prompt(start, logits, self.prompt.token_ids)

    def verify(self, rule: Verifier, tree: TokenTree, scores: Scores) -> Verdict | None:
        """What the target accepts of the tree; None if choosing failed, and with it the row."""
        if self.is_done:  # it failed before
            return None
        first = self.num_chosen
        verdict = self.attempt(lambda: rule(tree, scores.logits, self))
        self.sampler.recorder.settle()
        if verdict is not None:
            accepted = enumerate(verdict.path[1:], start=first)
            self._drafted_by.update((place, tree.drafters[node]) for place, node in accepted)
        return verdict

    def observe(self, tree: TokenTree, verdict: Verdict | None, scores: Scores) -> None:
        """Tells the drafter what became of its tree, and keeps count."""
        if verdict is not None:
            self.stats.record_step(tree, verdict)
            if not self.is_done:
                told = Scores(scores.logits, scores.hidden, self.sampler.foreseen)
                self.drafting.observe(tree, verdict, told)

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
        return self.sampler.num_chosen

    @property
    def room(self) -> int:
        """Tokens that may still be chosen."""
        return self.max_new_tokens - self.num_chosen

    @property
    def chosen(self) -> list[int]:
        """The generated tokens."""
        return self.tokens[self.prompt.num_tokens :]

    def choose(self, logits: Tensor) -> int:
        """The target's next token, given its raw logits (vocab,); may end the text."""
        token = self.sampler.choose(logits)
        self._append(token)
        return token

    def weigh(
        self, weigh: Weigh, tree: TokenTree, logits: Tensor, nodes: Sequence[int], *, at: int
    ) -> list[Odds]:
        """What a rule's `weigh` makes of `nodes`, of which `at` is where the walk has come to."""
        return self.sampler.weigh(weigh, tree, logits, nodes, at=at)

    def uniforms(self, count: int) -> list[float]:
        """Numbers in (0, 1) of the next token's place."""
        return self.sampler.uniforms(count)

    def take(self, token: int, odds: Odds) -> None:
        """A rule chose the token by what it weighed; may end the text."""
        self.sampler.record(token, odds.seen)
        self._append(token)

    def _append(self, token: int) -> None:
        self.tokens.append(token)
        self._text.push(token)
        is_stopped = self._meets_criteria() or self._text.is_stopped
        if token in self._eos_token_ids:
            self._finish("eos")
        elif is_stopped:
            self._finish("stop")
        elif self.num_chosen == self.max_new_tokens:
            self._finish("length")

    def _meets_criteria(self) -> bool:
        """Asks every one of transformers' stopping criteria: they may keep state."""
        if not self._criteria:
            return False
        kept = tuple(self.sampler.recorder.scores) or None
        return any([self._meets(criterion, kept) for criterion in self._criteria])

    def _meets(self, criterion: StoppingCriteria, kept: tuple[Tensor, ...] | None) -> bool:
        # The answer lies where the ids do: for one that asks the clock alone, on the host.
        is_clock = type(criterion) is MaxTimeCriteria
        ids = torch.empty(1, 0, dtype=torch.long) if is_clock else self.sampler.ids
        return bool(call_back(criterion, ids, kept))

    # Ending

    def attempt(self, stage: Callable[[], T]) -> T | None:
        """Runs a stage; an error in it ends this row, and no other."""
        try:
            return stage()
        except MmspecError as error:
            self.fail(error)
        except Exception as error:  # raised again by Engine.generate, or shown in Result.error
            if says_used_up(error):  # what it was thrown out of would keep what it had
                clear_frames(error.__traceback__)
            failure = DecodeError(
                f"after {counted(self.num_chosen, 'token')}: {type(error).__name__}: {error}"
            )
            failure.__cause__ = error
            self.fail(failure)
        return None

    def fail(self, error: MmspecError) -> None:
        """Ends the row with an error; the tokens chosen so far stay."""
        self.error = error
        self._finish("error")

    def end_if_unwanted(self) -> "Row":
        """Between two steps, if nobody waits for it any more; returns itself."""
        if self._is_wanted is not None and not self.is_done:
            is_wanted = self.attempt(partial(call_back, self._is_wanted))
            if not (is_wanted or self.is_done):
                self._finish("closed")
        return self

    def close(self) -> None:
        """The request ended, or nobody waits for it any more. Again is the same as once."""
        if not self.is_done:
            self._finish("closed")
        if not self._is_closed:  # what the text has taught is told once
            self._is_closed = True
            self.drafting.close(self.chosen)

    def take_pieces(self) -> list[Piece]:
        """The text that has become certain since the last call, by who drafted it."""
        return [Piece(text, self._drafted_by.get(token)) for text, token in self._text.take()]

    def _finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        self._text.finish()
