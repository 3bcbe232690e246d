"""Decoding by a clock of fixed costs: what the controller does, apart from how a machine is just
doing. The same texts, steps and figures in every run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mmspec.controller import AutoController, AutoStep, Pace
from mmspec.state import Preparation, Verdict
from mmspec.tree import TokenTree


@dataclass(frozen=True)
class FixedCosts:
    """Seconds that the parts of a step of one request take."""

    plain_s: float  # of a plain step, behind an empty text
    token_s: float  # more for each token of text
    node_s: float  # more for each drafted node
    drafts_s: Mapping[str, float] = field(default_factory=dict)  # drafter -> of a proposal

    def step_s(self, context: int, nodes: int) -> float:
        """Of scoring `nodes`, node 0 among them, behind `context` tokens."""
        return self.plain_s + self.token_s * context + self.node_s * (nodes - 1)


TINY_VLM = FixedCosts(
    plain_s=1.75e-3,
    token_s=0.85e-6,
    node_s=0.14e-3,
    drafts_s={"prompt_lookup": 0.12e-3, "medusa": 1.2e-3},
)  # about as measured on one thread of a CPU


class SimulatedController(AutoController):
    """The automatic controller, to which everything takes what `fixed` says. Work before a first
    draft takes no time."""

    def __init__(self, fixed: FixedCosts) -> None:
        super().__init__()
        self.fixed = fixed
        self.clock_s = 0.0  # of all steps so far
        self.plain_s = 0.0  # that a plain step for each of their tokens would have taken

    def step(self, paces: Sequence[Pace], context: int) -> "SimulatedStep":
        for pace in paces:
            pace.lengths = self.lengths
        return SimulatedStep(self, paces, context)


class SimulatedStep(AutoStep):
    """One step, of one request."""

    def __init__(
        self, controller: SimulatedController, paces: Sequence[Pace], context: int
    ) -> None:
        super().__init__(controller, paces, context)
        self._simulated = controller
        self._own_context = context
        self._proposals_s = 0.0
        self._num_nodes = 1

    def prepared(self, row: int, drafter: str, due: Preparation, seconds: float) -> None:
        super().prepared(row, drafter, due, 0.0)

    def learn(
        self, row: int, drafter: str, before: TokenTree, after: TokenTree, seconds: float
    ) -> None:
        seconds = self._simulated.fixed.drafts_s[drafter]
        self._proposals_s += seconds
        super().learn(row, drafter, before, after, seconds)

    def cut(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        kept = super().cut(trees)
        self._num_nodes = max(tree.num_nodes for tree in kept)
        return kept

    def spent(self, seconds: float) -> None:
        super().spent(self._proposals_s)

    def observe(self, verdicts: Sequence[Verdict | None], seconds: float) -> None:
        simulated = self._simulated
        seconds = simulated.fixed.step_s(self._own_context, self._num_nodes)
        simulated.clock_s += seconds + self._proposals_s
        tokens = sum(len(verdict.tokens) for verdict in verdicts if verdict is not None)
        simulated.plain_s += tokens * simulated.fixed.step_s(self._own_context, 1)
        super().observe(verdicts, seconds)
