"""What the decode loop asks of a drafter."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from mmspec.draft_guide import DraftGuide
from mmspec.inputs import InputProcessor
from mmspec.state import Prefill, Preparation, Prices, Prompt, Scores, Taps, Verdict
from mmspec.target import Target
from mmspec.target.graphs import ScoreGraphs
from mmspec.tree import TokenTree


class DraftSession(Protocol):
    """One request's drafting. Holds all of its state; closed when the request ends."""

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        """A tree below node 0 = `tokens[-1]` with at most `budget` drafted nodes; `budget` is 1 or
        more. `tokens` are the prompt's and the chosen ones. Where there is nothing worth scoring:
        `TokenTree.root`. It may be asked at any step, or not for many.

        `tokens` can be read only, and grow with the text: what is kept of them is a slice, which is
        a list. Take the new ones alone: all of a long text, at each step, take longer than the
        rest of a proposal may."""

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        """What became of the step's tree, which may hold other drafters' nodes and lack some of
        this one's. Told after every step, also where this drafter was not asked."""

    def close(self) -> None:
        """The request ended, or failed."""


@runtime_checkable
class PreparedSession(DraftSession, Protocol):
    """One that has something to do before its first proposal, and perhaps again before later ones,
    such as reading the prompt. Where that can't be worth its while it is not asked."""

    def preparation(self, num_tokens: int) -> Preparation | None:
        """What is due before a proposal for a text of `num_tokens`, the prompt's and the chosen
        ones; None: nothing. Asked at every step: it takes microseconds and changes nothing."""

    def prepare(self, tokens: Sequence[int]) -> None:
        """Does it, for a text that is proposed for next; `tokens` as `propose` is given them. Its
        time is not counted as what a proposal costs. A session that is asked unprepared prepares
        itself."""


@runtime_checkable
class PricedSession(DraftSession, Protocol):
    """One whose proposals are the longer the more time they take. It should stop where a token
    would cost more than it saves."""

    prices: Prices | None  # set before each proposal; None: time shall not matter, or is not known

    @property
    def least_s(self) -> float | None:
        """Seconds that its shortest proposal takes; None before that was measured."""


@runtime_checkable
class LearningSession(DraftSession, Protocol):
    """One that keeps the finished text for later requests."""

    def learn(self, chosen: Sequence[int]) -> None:
        """The request ended with these tokens, EOS among them; called before `close`. May be kept
        where `Prompt.namespace` is not None, and be used for that namespace alone."""


@runtime_checkable
class RevisableSession(DraftSession, Protocol):
    """One that can be asked about a text that may not come true, as a cascade does. It is told
    what became of such a proposal, too, then takes it back, and is told the target's step like
    any other session."""

    def take_back(self, num_tokens: int) -> None:
        """Only the first `num_tokens` of the tokens it was last asked about stand."""


class Drafter(Protocol):
    """Starts sessions. Shared by all requests of an engine, so it holds no request's state."""

    name: str

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> DraftSession: ...


@runtime_checkable
class DrawingDrafter(Drafter, Protocol):
    """A drafter that can draw its tokens, as the rules that divide by q need it (`drawing`).

    Its trees then carry `q`, hold no more nodes than the budget says, and a node is in them
    whatever token was drawn for it: it may be left out for the path above it alone.
    """

    draws: bool  # whether it does, the way it is set up


@runtime_checkable
class TappingDrafter(Drafter, Protocol):
    """A drafter that reads the target's hidden states. `start` finds them in `Prefill.hidden`,
    `observe` in `Scores.hidden`, those of other drafters' taps beside them; what is not asked for
    is not kept.

    Of a prompt the last token's are always there. With `whole_prompt` the others' are too, but for
    a beginning that was reused from an earlier request: its keys are known, its states are not.
    They may be views of the batch's: copy what is kept for longer than the call. Those of a step
    may be computed only when they are looked at: who needs them in a proposal alone keeps the
    mapping of the newest step, and looks then.
    """

    taps: Taps


@runtime_checkable
class TextDrafter(Drafter, Protocol):
    """A drafter that may be asked while the target's next forward is under way."""

    reads_text_alone: bool  # neither the target's states nor its KV, and uses no device


@runtime_checkable
class BatchDrafter(Drafter, Protocol):
    """A drafter that proposes for several requests in one go, as a model does: for rows of one
    decode loop, and so of one cache of the target's."""

    def propose_together(
        self, sessions: Sequence[DraftSession], texts: Sequence[Sequence[int]], budget: int
    ) -> list[TokenTree]:
        """One tree a session, as `DraftSession.propose` would make it from its text.

        Where it raises, it is asked again for each session alone, so that one row's failure is no
        other's: what it raised at must leave the sessions such that they can propose."""


@runtime_checkable
class LearningDrafter(Drafter, Protocol):
    """A drafter whose sessions leave something to later requests."""

    def forget(self, namespace: str | None = None) -> None:
        """Drops what requests of a namespace have left, or of all."""


@runtime_checkable
class WatchingDrafter(Drafter, Protocol):
    """A drafter that looks at the queries of the target's own forwards, in `Prefill.cache`."""

    watched_queries: int  # of so many newest tokens of a row


@runtime_checkable
class RecordedDrafter(Drafter, Protocol):
    """A drafter whose forwards are recorded where the target's score calls are."""

    @property
    def recorded(self) -> Sequence[ScoreGraphs]:
        """The graphs, the target's own among them where it drafts by these."""

    def free_recorded(self) -> None:
        """Drops them, and buffers that no cache uses."""


@runtime_checkable
class DrafterForTarget(Protocol):
    """A drafter that has to know its target, its tokenizer for one, before it can start."""

    name: str

    def for_target(self, target: Target, inputs: InputProcessor | None) -> Drafter:
        """The drafter of this target. Raises ConfigError where the two do not fit."""
