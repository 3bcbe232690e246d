"""THE decode loop: prefill -> (propose -> score -> verify -> commit -> observe -> yield)*.

Plain decoding is the same loop with trees of node 0 alone.
"""

from collections.abc import Generator, Iterable
from itertools import islice

from mmspec.drafting import DraftSettings, propose, tapped_layers
from mmspec.foresight import verify_together
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
) -> Generator[Row]:
    """Yields a row whenever it has chosen more tokens, or ended.

    `rows` is taken from as places become free: at most `max_rows` are decoded together, each with
    its own length, tree, seed and end. A None says that there is none now; it ends with the last
    one. Closing the iterator frees all KV; what the stores in `prefill` got of it stays.
    """
    waiting, active, vocab_size = iter(rows), list[Row](), target.vocab_size
    cache = target.new_cache(watched_queries=drafts.watched_queries)
    prefiller = Prefiller(target, cache, prefill, room_tokens=drafts.max_nodes + 1)
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
            watch = Stopwatch()
            # 2. Propose: the drafters continue each row's own text with a tree.
            with watch.stage("propose"):
                step, trees = propose(active, drafts, vocab_size)
            # 3. Score: all trees in one forward.
            with watch.stage("score"):
                places = [row.placement for row in active]
                scores = target.score(trees, cache, places, taps=tapped_layers(active))
            # 4. Verify: each row chooses its tokens along its tree.
            steps = list(zip(active, trees, scores, strict=True))
            with watch.stage("verify"):
                verdicts = verify_together(verify, steps)
            # 5. Commit the accepted paths; what was not accepted is forgotten.
            with watch.stage("commit"):
                accepted = zip(active, verdicts, strict=True)
                cache.commit({row.placement.row: v.path for row, v in accepted if v is not None})
            # 6. Observe: each drafter learns what became of its tree.
            with watch.stage("observe"):
                step.observe(verdicts, watch.spent("score", "verify", "commit"))
                for (row, tree, score), verdict in zip(steps, verdicts, strict=True):
                    row.observe(tree, verdict, score)
            for row in active:
                row.stats.add_seconds(watch.seconds)
                yield row.end_if_unwanted()
            active = _keep_unfinished(active, prefiller)
    finally:
        for row in (*active, *prefiller.rows):
            row.close()
        prefiller.close()
        cache.release()


def _keep_unfinished(rows: list[Row], prefiller: Prefiller) -> list[Row]:
    """The rows that go on; the others' slots are free again."""
    for row in rows:
        if row.is_done:
            row.close()
            prefiller.finish(row)
    return [row for row in rows if not row.is_done]
