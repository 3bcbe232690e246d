"""THE decode loop: prefill -> (propose -> score -> verify -> commit -> observe -> yield)*.

Plain decoding is the same loop with trees of node 0 alone.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice

from mmspec.controller import Controller
from mmspec.drafting import propose
from mmspec.kv import KVCache
from mmspec.row import Row
from mmspec.stats import Stopwatch
from mmspec.target import Target
from mmspec.tree import TokenTree
from mmspec.verify import Verifier

_EXPECTED_TOKENS = 512  # a row opens with room for so many; a longer text makes it grow


def decode(
    target: Target,
    rows: Iterable[Row],
    *,
    verify: Verifier,
    controller: Controller,
    fit: Callable[[TokenTree], TokenTree],
    max_nodes: int,
    max_rows: int,
) -> Iterator[Row]:
    """Yields a row whenever it has chosen more tokens, or ended.

    `rows` is taken from as places become free: at most `max_rows` are decoded together, each with
    its own length, tree, seed and end. `controller` decides whom to ask and what to
    score; `fit` makes any tree one that the target can score;
    `max_nodes` is the budget of drafted nodes a row and step. Closing the iterator frees all KV.
    """
    waiting, active, cache = iter(rows), list[Row](), target.new_cache()
    vocab_size = target.vocab_size
    try:
        while True:
            # 1. Prefill: a new row's whole prompt; its last logits choose the first token.
            for row in islice(waiting, max_rows - len(active)):
                active.append(row)
                row.attempt(partial(_prefill, target, cache, row, max_nodes))
                yield row
            if not active:
                return
            active = _keep_unfinished(active, cache)
            if not active:
                continue
            watch = Stopwatch()
            # 2. Propose: the drafters continue each row's own text with a tree.
            with watch.stage("propose"):
                step = controller.step([row.drafting.pace for row in active], _context(active))
                trees = propose(active, step, fit=fit, max_nodes=max_nodes, vocab_size=vocab_size)
            # 3. Score: all trees in one forward.
            with watch.stage("score"):
                scores = target.score(trees, cache, [row.placement for row in active])
            # 4. Verify: each row chooses its tokens along its tree.
            steps = list(zip(active, trees, scores, strict=True))
            with watch.stage("verify"):
                verdicts = [row.verify(verify, tree, score) for row, tree, score in steps]
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
                yield row
            active = _keep_unfinished(active, cache)
    finally:
        for row in active:
            row.close()
        cache.release()


def _prefill(target: Target, cache: KVCache, row: Row, max_nodes: int) -> None:
    watch = Stopwatch()
    expected = min(row.max_new_tokens, _EXPECTED_TOKENS)
    slot = cache.open(row.prompt.num_tokens + expected + max_nodes + 1)
    try:
        with watch.stage("prefill"):
            prefill = target.prefill(row.prompt, cache, slot, on_logits=row.on_prompt_logits)
    except Exception:
        cache.close(slot)
        raise
    row.begin(prefill)
    row.stats.add_seconds(watch.seconds)


def _context(rows: list[Row]) -> int:
    """Tokens of the longest row."""
    return max(len(row.tokens) for row in rows)


def _keep_unfinished(rows: list[Row], cache: KVCache) -> list[Row]:
    """The rows that go on; the others' slots are free again."""
    for row in rows:
        if row.is_done:
            row.close()
            if row.is_prefilled:
                cache.close(row.placement.row)
    return [row for row in rows if not row.is_done]
