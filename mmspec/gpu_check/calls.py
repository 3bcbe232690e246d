"""The calls that are timed: a score of some nodes, and a draft step over a view."""

from collections.abc import Callable

from mmspec.bench.harness import binary_tree
from mmspec.errors import ModelError
from mmspec.gpu_check.clock import Clock
from mmspec.gpu_check.models import filled_cache
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting
from mmspec.gpu_check.targets import EAGER, GRAPH
from mmspec.kv import KVCache, KVView, ViewSize
from mmspec.kv.policies import POLICIES
from mmspec.plan.shape import ModelShape
from mmspec.state import Placement
from mmspec.target import Target
from mmspec.target.quantised import QuantisedLinears

BUDGETS = (256, 1024, 4096)
DRAFT_WEIGHTS = ("same", "fp8", "int4")
_ROOM = 64


def score_call(
    target: Target, cache: KVCache, placement: Placement, nodes: int
) -> Callable[[], object]:
    """One score of so many nodes, with what a step does around it; keeps nothing of them."""
    tree = binary_tree(nodes)

    def call() -> object:
        scores = target.score([tree], cache, [placement])
        cache.commit({placement.row: []})
        return scores

    return call


def draft_calls(
    targets: dict[str, Target],
    shape: ModelShape,
    setting: Setting,
    context: int,
    recorder: Recorder,
) -> dict[str, dict[str, dict[int, float]]]:
    """Milliseconds of a draft step: way -> weights -> view's budget -> ms."""
    found: dict[str, dict[int, float]] = {}
    clock = Clock(setting.device, rounds=3 if setting.is_small else 9, limit_s=2.0)
    budgets = (16,) if setting.is_small else BUDGETS
    way = GRAPH if GRAPH in targets else EAGER
    target = targets[way]
    for weights, drafting in draft_variants(target, recorder).items():
        cache, placement = filled_cache(target, shape, context)
        found[weights] = {
            budget: clock.median_ms(view_call(drafting, cache, placement, budget, 1))
            for budget in budgets
        }
        cache.release()
        target.free()
        setting.free()
    return {way: found}


def draft_variants(target: Target, recorder: Recorder) -> dict[str, Target]:
    """The target with each of the weights that a draft may have, where there is a kernel."""
    variants = {"same": target}
    for weights in DRAFT_WEIGHTS[1:]:
        try:
            copied = QuantisedLinears(target.model, weights)  # type: ignore[arg-type]
        except ModelError as error:
            recorder.missing(str(error))
            continue
        variants[weights] = target.variant(copied)
    return variants


def view_call(
    target: Target, cache: KVCache, placement: Placement, budget: int, nodes: int
) -> Callable[[], object]:
    """One forward of so many nodes over a view of `budget` tokens, the newest and the first."""
    view = KVView(cache, POLICIES["window"](), ViewSize(budget, recent=1, room=_ROOM))
    view.follow(placement.row)
    view.catch_up(placement.row)
    hidden = view.num_hidden(placement.row)
    offsets = tuple(offset + hidden for offset in placement.position_offsets)
    return score_call(target, view, Placement(view.row_of(placement.row), offsets), nodes)
