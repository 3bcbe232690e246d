"""Drafting: several drafters' trees become one; one that fails is left out, the others go on."""

from collections.abc import Sequence
from contextlib import nullcontext

import pytest
import torch

from mmspec.controller import AutoController, FixedController, FixedStep, Pace
from mmspec.draft_guide import DraftGuide
from mmspec.drafters.base import BatchDrafter
from mmspec.drafting import Drafting, DraftSettings, propose
from mmspec.state import Placement, Prefill, Preparation, Prompt, Scores, Verdict
from mmspec.tree import TokenTree

GUIDE = DraftGuide(is_greedy=True, seed=0, sample=0, prompt_length=2)
PREFILL = Prefill(torch.zeros(1), Placement(0, (0,)))


class Says:
    """Drafts the same tokens whatever the text; its own session."""

    def __init__(self, name: str, draft: Sequence[int], confidence: float = 0.5) -> None:
        self.name, self.draft, self.confidence = name, draft, confidence
        self.calls: list[str] = []

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> "Says":
        return self

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        self.calls.append("propose")
        return TokenTree.chain(
            tokens[-1], self.draft, [self.confidence] * len(self.draft), self.name
        )

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        self.calls.append("observe")

    def close(self) -> None:
        self.calls.append("close")


class Fails(Says):
    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        super().propose(tokens, budget)
        raise RuntimeError("out of ideas")


class Strays(Says):
    """Begins at another token than the text ends with."""

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        return super().propose([9], budget)


class Lost(Says):
    """Its device is lost when the text has ended."""

    def learn(self, chosen: Sequence[int]) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")


class Together(Says):
    """Proposes for all rows at once."""

    def propose_together(
        self, sessions: Sequence[object], texts: Sequence[Sequence[int]], budget: int
    ) -> list[TokenTree]:
        self.calls.append(f"together {len(texts)}")
        return [Says.propose(self, text, budget) for text in texts]


class FailsTogether(Together):
    def propose_together(self, *_: object) -> list[TokenTree]:  # type: ignore[override]
        raise RuntimeError("out of memory")


class Row:
    def __init__(
        self,
        *drafters: Says,
        tokens: Sequence[int] = (3, 5),
        room: int = 9,
        needs_q: bool = False,
    ) -> None:
        self.tokens, self.room = list(tokens), room
        self.drafting = Drafting(drafters, needs_q=needs_q)
        self.drafting.start(Prompt(torch.tensor(self.tokens)), PREFILL, GUIDE)


def trees(*rows: Row, max_nodes: int = 8) -> list[TokenTree]:
    return propose(rows, DraftSettings(FixedController(), lambda t: t, max_nodes), 100).trees


def test_the_trees_of_several_drafters_are_one_trie_that_knows_who_drafted_what() -> None:
    #        5
    #      /   \
    #     7     9     both say 7, the surer one has it
    #    / \
    #   8   6
    row = Row(Says("a", [7, 8], 0.5), Says("b", [7, 6], 0.9), Says("c", [9], 0.1))
    (tree,) = trees(row)
    drafted = dict(zip(tree.tokens, tree.drafters, strict=True))
    assert drafted == {5: "", 7: "b", 8: "a", 9: "c", 6: "b"}
    assert row.drafting.pace.asked == {"a": 1, "b": 1, "c": 1}


def test_together_they_stay_within_the_budget_and_the_room() -> None:
    row = Row(Says("a", [7, 8, 9, 10]), Says("b", [11, 12, 13]), room=3)
    (tree,) = trees(row, max_nodes=3)
    assert tree.num_nodes == 4 and max(tree.depths) <= 2
    (tree,) = trees(Row(Says("a", [7]), Says("b", [8])))
    assert tree.tokens == (5, 7, 8)
    drafter = Says("a", [7])
    assert trees(Row(drafter, room=1)) == [TokenTree.root(5)] and not drafter.calls
    assert [tree.tokens for tree in trees(Row(drafter, room=2))] == [(5, 7)]


@pytest.mark.parametrize("num_rows", range(1, 14))
def test_all_rows_nodes_have_room_for_their_states_node_0_among_them(num_rows: int) -> None:
    settings = DraftSettings(FixedController(), lambda t: t, 8, max_states=12)
    most = settings.nodes_of(num_rows)
    assert most == 0 or num_rows * (most + 1) <= 12
    assert most == 8 or num_rows * (most + 2) > 12, "there was room for more"
    assert DraftSettings(FixedController(), lambda t: t, 8).nodes_of(num_rows) == 8


@pytest.mark.parametrize("budget", [1, 2])
@pytest.mark.drafter_fails
def test_what_was_drawn_is_whole_and_within_the_budget(
    budget: int, caplog: pytest.LogCaptureFixture
) -> None:
    row = Row(Says("a", [7, 8]), needs_q=True)
    (tree,) = trees(row, max_nodes=budget)
    if budget == 2:
        assert tree.tokens == (5, 7, 8) and not caplog.records
    else:
        assert tree.tokens == (5,) and not row.drafting.drafters
        (record,) = caplog.records
        assert "2 drafted nodes, expected at most 1" in record.message
        assert "without it, its distribution is the same" in record.message


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (Fails("bad", [7]), "out of ideas"),
        (FailsTogether("bad", [7]), "out of memory"),
        (Says("bad", [7, 10**6]), "vocabulary"),
        (Says("bad", [7], confidence=2.0), "confidence"),
    ],
)
@pytest.mark.drafter_fails
def test_a_failing_drafter_is_left_out_with_one_warning_and_the_others_go_on(
    bad: Says, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = Says("good", [8])
    rows = [Row(good, bad), Row(bad, good, tokens=(1, 2, 4))]
    for _ in range(2):
        assert [tree.tokens for tree in trees(*rows)] == [(5, 8), (4, 8)]
    assert [d.name for row in rows for d in row.drafting.drafters] == ["good", "good"]
    warnings = [record.message for record in caplog.records if "bad" in record.message]
    assert (
        len(warnings) == 1
        and said in warnings[0]
        and "2 requests go on without it, each one's text is" in warnings[0]
    )
    assert bad.calls.count("close") == 2


@pytest.mark.drafter_fails
def test_rows_where_it_fails_in_other_ways_are_told_of_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    drafter = Strays("bad", [7])
    assert [tree.tokens for tree in trees(Row(drafter), Row(drafter, tokens=(1,)))] == [(5,), (1,)]
    told = [record.message.split("; this request goes on")[0] for record in caplog.records]
    failed = "drafter bad failed (ValueError: node 0 is 9, the last token"
    assert told == [f"{failed} 5)", f"{failed} 1)"]


def test_a_batch_drafter_is_asked_once_for_all_rows_that_want_it() -> None:
    drafter = Together("model", [7])
    assert isinstance(drafter, BatchDrafter) and not isinstance(Says("a", []), BatchDrafter)
    rows = [Row(drafter), Row(Says("other", [8]), tokens=(1,)), Row(drafter, tokens=(2, 6))]
    assert [tree.tokens for tree in trees(*rows)] == [(5, 7), (1, 8), (6, 7)]
    assert drafter.calls[0] == "together 2"


class FailsAt(Together):
    """Fails where a text ends with `token`, whoever else is asked for."""

    def __init__(self, name: str, draft: Sequence[int], token: int) -> None:
        super().__init__(name, draft)
        self.token = token

    def propose_together(
        self, sessions: Sequence[object], texts: Sequence[Sequence[int]], budget: int
    ) -> list[TokenTree]:
        made = super().propose_together(sessions, texts, budget)
        if any(text[-1] == self.token for text in texts):
            raise RuntimeError(f"not after {self.token}")
        return made


class FailsForSeveral(Together):
    def propose_together(
        self, sessions: Sequence[object], texts: Sequence[Sequence[int]], budget: int
    ) -> list[TokenTree]:
        made = super().propose_together(sessions, texts, budget)
        return made[:1]  # of however many


@pytest.mark.drafter_fails
def test_a_batch_drafters_failure_at_one_row_is_that_rows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    drafter = FailsAt("model", [7], 6)
    rows = [Row(drafter), Row(drafter, tokens=(2, 6)), Row(drafter, tokens=(1,))]
    for _ in range(2):
        assert [tree.tokens for tree in trees(*rows)] == [(5, 7), (6,), (1, 7)]
    assert [len(row.drafting.drafters) for row in rows] == [1, 0, 1]
    (record,) = caplog.records
    assert "not after 6" in record.message and "this request goes on" in record.message
    together = [call for call in drafter.calls if "together" in call]
    assert together == ["together 3", *["together 1"] * 3, "together 2"]
    alone = FailsAt("alone", [7], 6)
    trees(Row(alone, tokens=(2, 6)))
    assert alone.calls == ["together 1", "propose", "close"], "it was asked once"


@pytest.mark.drafter_fails
def test_what_fails_for_several_rows_alone_is_asked_for_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    drafter = FailsForSeveral("model", [7])
    rows = [Row(drafter), Row(drafter, tokens=(2, 6))]
    for _ in range(2):
        assert [tree.tokens for tree in trees(*rows)] == [(5, 7), (6, 7)]
    (record,) = caplog.records
    assert "failed for 2 requests together (ValueError: 1 trees" in record.message
    together = [call for call in drafter.calls if "together" in call]
    assert together == ["together 2", *["together 1"] * 4]


def test_every_session_observes_every_step_also_where_it_was_not_asked() -> None:
    drafter = Says("a", [7])
    row = Row(drafter)
    settings = DraftSettings(AutoController(), lambda t: t, 8)  # has measured nothing: asks nobody
    (tree,) = propose([row], settings, 100).trees
    assert tree == TokenTree.root(5)
    row.drafting.observe(tree, Verdict((0,), (7,)), Scores(torch.zeros(1, 9)))
    row.drafting.close()
    row.drafting.close()
    assert drafter.calls == ["observe", "close"]


def test_every_session_is_closed_once_also_where_one_has_lost_the_device() -> None:
    sessions = [Lost("a", [7]), Says("b", [8]), Lost("c", [9])]
    row = Row(*sessions)
    for closing in range(2):
        with pytest.raises(RuntimeError, match="device-side") if closing == 0 else nullcontext():
            row.drafting.close((1, 2))
        assert [session.calls for session in sessions] == [["close"]] * 3


def test_a_request_without_speculation_opens_no_session() -> None:
    drafter = Says("a", [7])
    assert Drafting([drafter], speculate=False).drafters == []


def test_the_texts_length_is_told_at_its_end() -> None:
    lengths = Row().drafting.pace.lengths
    for chosen in ([], [4, 4, 4]):
        drafting = Drafting([])
        drafting.pace.lengths = lengths
        drafting.close(chosen)
    assert lengths.usual == 3


def test_time_is_booked_as_it_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drafter's own in equal shares of the rows that it was asked for; the step's as a whole."""
    now, booked = [100.0], dict[str, float]()

    class Slow(Says):
        def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
            now[0] += len(self.draft)
            return super().propose(tokens, budget)

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr(FixedStep, "spent", lambda _, seconds: booked.update(all=seconds))
    monkeypatch.setattr(
        FixedStep, "learn", lambda _, row, name, *rest: booked.update({f"{name} {row}": rest[-1]})
    )
    short, long = Slow("short", [7]), Slow("long", [7, 8, 9])
    trees(Row(short, long), Row(short, tokens=(1,)), Row(tokens=(2,)))
    assert booked == {"short 0": 1.0, "short 1": 1.0, "long 0": 3.0, "all": 5.0}


class Reads(Says):
    """Reads the text alone, which it has to prepare for."""

    reads_text_alone = True

    def preparation(self, num_tokens: int) -> Preparation | None:
        return Preparation(seconds=1e-4)

    def prepare(self, tokens: Sequence[int]) -> None:
        self.calls.append("prepare")


class PatientStep(FixedStep):
    lets_drafts_wait = True


class Patient(FixedController):
    """Lets drafts come a step late."""

    def step(self, paces: Sequence[Pace], context: int) -> FixedStep:
        return PatientStep(paces)


@pytest.mark.parametrize("draft", [[7], []])
def test_while_a_step_is_under_way_only_readers_of_the_text_are_asked(
    draft: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the next one: a tree would come too late for this. Nor does anybody wait for the device,
    which works on what is none of theirs."""
    monkeypatch.setattr(Drafting, "wait", lambda self: pytest.fail("waited"))
    reads, looks = Reads("reads", draft), Says("looks", [8])
    settings = DraftSettings(Patient(), lambda t: t, 8)
    found = propose([Row(reads)], settings, 100, is_begun=True)
    assert reads.calls == ["prepare", "propose"]
    assert found.trees == [TokenTree.root(5)]
    assert found.is_quiet is not bool(draft)
    assert propose([Row(reads)], settings, 100).is_quiet is not bool(draft)
    found = propose([Row(reads, looks)], settings, 100, is_begun=True)
    assert not looks.calls
    assert found.trees == [TokenTree.root(5)] and not found.is_quiet


@pytest.mark.parametrize("is_begun", [False, True])
def test_what_is_not_worth_scoring_lets_the_next_step_begin(
    is_begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, settings = Reads("reads", [7]), DraftSettings(Patient(), lambda t: t, 8)
    cut = FixedStep.cut
    monkeypatch.setattr(PatientStep, "drop", lambda step, trees: False)
    monkeypatch.setattr(PatientStep, "cut", lambda step, trees: cut(step, [TokenTree.root(5)]))
    found = propose([Row(reads)], settings, 100, is_begun=is_begun)
    assert reads.calls == ["prepare", "propose"]
    assert found.trees == [TokenTree.root(5)] and found.is_quiet


class OneSleeps(FixedController):
    """Asks nobody for the first row."""

    def step(self, paces: Sequence[Pace], context: int) -> FixedStep:
        step = FixedStep(paces)
        step.sleeps = lambda row: row == 0  # type: ignore[method-assign]
        return step


def test_for_a_row_that_sleeps_nobody_is_asked() -> None:
    drafter, settings = Says("says", [7]), DraftSettings(OneSleeps(), lambda t: t, 8)
    found = propose([Row(drafter), Row(drafter, tokens=(1,))], settings, 100)
    assert [tree.tokens for tree in found.trees] == [(5,), (1, 7)] and not found.is_quiet
    alone = propose([Row(drafter)], settings, 100)
    assert alone.trees == [TokenTree.root(5)] and alone.is_quiet
    assert drafter.calls.count("propose") == 1


class Priced(Says):
    """A model that takes `least_s` for its shortest proposal, and has something due first."""

    least_s = 1e-5
    prices = None

    def preparation(self, num_tokens: int) -> Preparation | None:
        return Preparation(seconds=1e-4)

    def prepare(self, tokens: Sequence[int]) -> None:
        self.calls.append("prepare")


@pytest.mark.parametrize("may_prepare", [True, False])
@pytest.mark.parametrize("max_nodes", [8, 0])
@pytest.mark.parametrize("least_s", [1e-5, 1.0])
def test_a_step_under_way_is_followed_by_another_unless_somebody_would_be_asked(
    may_prepare: bool, max_nodes: int, least_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what it is asked by where no step is begun, and without doing anything for it."""
    monkeypatch.setattr(PatientStep, "prepares", lambda *_: may_prepare)
    monkeypatch.setattr(PatientStep, "asks", lambda *_, least_s=9.0: least_s < 0.1)
    settings = DraftSettings(Patient(), lambda t: t, max_nodes)
    drafter = Priced("priced", [])
    drafter.least_s = least_s
    found = propose([Row(drafter)], settings, 100, is_begun=True)
    assert not drafter.calls
    propose([Row(drafter)], settings, 100)
    assert found.is_quiet is not ("propose" in drafter.calls)


def test_one_of_several_that_would_be_asked_is_enough_to_wait_for_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PatientStep, "asks", lambda _, row, name, tree, least_s: name == "asked")
    for names in (("asked", "not"), ("not", "asked")):
        rows = [Row(*(Says(name, [7]) for name in names))]
        settings = DraftSettings(Patient(), lambda t: t, 8)
        assert not propose(rows, settings, 100, is_begun=True).is_quiet


@pytest.mark.parametrize("can_wait", [True, False])
def test_what_may_not_prepare_is_asked_where_that_can_wait(
    can_wait: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FixedStep, "prepares", lambda *_: False)
    drafter = Priced("priced", [7])
    drafter.preparation = lambda _: Preparation(can_wait=can_wait)  # type: ignore[method-assign]
    trees(Row(drafter))
    assert drafter.calls == ["propose"] * can_wait


def test_without_room_for_a_node_nobody_is_waited_for() -> None:
    settings = DraftSettings(FixedController(), lambda t: t, 0)
    assert propose([Row(Says("a", [7]))], settings, 100).is_quiet
