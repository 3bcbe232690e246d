"""THE decode loop: prefill -> (propose -> score -> verify -> commit -> observe -> yield)*.

Plain decoding is the same loop with trees of node 0 alone.
"""

from collections.abc import Generator, Iterable
from contextlib import ExitStack
from itertools import islice

from mmspec.drafting import DraftSettings, propose
from mmspec.overlap import Overlap
from mmspec.prefiller import Prefiller, PrefillSettings
from mmspec.row import Row
from mmspec.stats import Stopwatch
from mmspec.target import Target
from mmspec.verify import Verifier

_IN_ONE_GO = PrefillSettings()


def decode(
    target: Target,
    rows: Iterable[Row | None],
    *,
    verify: Verifier,
    drafts: DraftSettings,
    max_rows: int,
    prefill: PrefillSettings = _IN_ONE_GO,
    overlaps: bool = False,
) -> Generator[Row]:
    """Yields a row whenever it has chosen more tokens, or ended.

    `rows` is taken from as places become free, at most `max_rows` at a time; None: there is none
    now. With `overlaps` plain steps are begun early (`overlap`). Closing the iterator frees all KV.
    """
    waiting, active, vocab_size = iter(rows), list[Row](), target.vocab_size
    cache = target.new_cache(watched_queries=drafts.watched_queries)
    prefiller = Prefiller(target, cache, prefill, room_tokens=drafts.max_nodes + 1)
    overlap = Overlap(target, cache, is_on=overlaps)
    try:
        while True:
            # 1. Prefill: new rows' prompts, by chunks; the last logits choose the first token.
            prefiller.admit(islice(waiting, max_rows - len(active) - len(prefiller.rows)))
            for row in prefiller.step():
                active.append(row)
                yield row
            if not active and not prefiller.rows:
                return
            active = _keep_unfinished(active, prefiller)
            if not active:
                continue
            stepping, watch = overlap.rows(active), Stopwatch()
            # 2. Propose: the drafters continue each row's own text with a tree.
            drafted = propose(stepping, drafts, vocab_size, is_begun=overlap.is_begun)
            watch.lap("propose")
            # 3. Score: all trees in one forward, which may have been begun.
            scores = overlap.score(stepping, drafted.trees)
            watch.lap("score")
            # 4. Verify: each row chooses its tokens along its tree.
            steps = list(zip(stepping, drafted.trees, scores, strict=True))
            may_begin = drafted.is_quiet and not prefiller.rows and len(stepping) == len(active)
            verdicts = overlap.verify(verify, steps, may_begin=may_begin)
            watch.lap("verify")
            # 5. Commit the accepted paths; what was not accepted is forgotten.
            overlap.commit(stepping, verdicts)
            watch.lap("commit")
            # 6. Observe: each drafter learns what became of its tree.
            drafted.step.observe(verdicts, watch.spent("score", "verify", "commit"))
            for (row, tree, score), verdict in zip(steps, verdicts, strict=True):
                row.observe(tree, verdict, score)
            watch.lap("observe")
            for row in stepping:
                row.stats.add_seconds(watch.seconds)
                yield row.end_if_unwanted()
            active = _keep_unfinished(active, prefiller)
    finally:
        with ExitStack() as at_end:  # each is closed, also where another's close fails
            of_rows = [row.close for row in (*active, *prefiller.rows)]
            for close in (overlap.close, prefiller.close, *of_rows):
                at_end.callback(close)


def _keep_unfinished(rows: list[Row], prefiller: Prefiller) -> list[Row]:
    """The rows that go on; the others' slots are free again."""
    ended = [row for row in rows if row.is_done]
    for row in ended:
        row.close()
        prefiller.finish(row)
    return [row for row in rows if not row.is_done] if ended else rows
