"""Long contexts: what each step costs is measured, how much is accepted is replayed.

No trained model here is large and reads 128k tokens well. So a small trained one drafts for itself
over a short text, and what it did, step by step, is priced at the large one's costs at 128k.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from transformers import PreTrainedModel

from mmspec.build import load
from mmspec.drafters.cascade import Cascade
from mmspec.drafters.compressed_kv import CompressedKV
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.gpu_check.calls import draft_variants, score_call, view_call
from mmspec.gpu_check.clock import Clock
from mmspec.gpu_check.counted import CountedForwards
from mmspec.gpu_check.enlarged import MODEL, enlarged_shape
from mmspec.gpu_check.models import filled_cache
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting
from mmspec.gpu_check.targets import EAGER, GRAPH, timed_targets
from mmspec.target.load import load_model, load_processor, resolve_path
from mmspec.training.tiny.data import quote, story

CONTEXT = 131_072
LABEL = "acceptance replayed from a small trained model on short texts; cost measured at 128k"
_BUDGETS = (1024, 4096)  # of a view, at 128k
_NODES = (1, 2, 4, 8, 16, 32)
_DEPTHS = (2, 4, 8)


@dataclass(frozen=True)
class Acceptance:
    """What a drafter did on the small model's texts, all together."""

    drafter: str
    text: str
    new_tokens: int  # the first of which is the prefill's
    scored: Mapping[int, int]  # drafted nodes the target scored -> steps
    drafts: Mapping[int, int]  # nodes of a forward over the view -> forwards


@dataclass(frozen=True)
class Costs:
    """Milliseconds by nodes."""

    score: Mapping[int, float]
    draft: Mapping[int, float]

    def speed(self, seen: Acceptance) -> float:
        """Beside plain decoding of the same tokens."""
        spent = sum(_at(self.score, nodes + 1) * steps for nodes, steps in seen.scored.items())
        spent += sum(_at(self.draft, nodes) * calls for nodes, calls in seen.drafts.items())
        return (seen.new_tokens - 1) * self.score[1] / spent


def replayed(model: PreTrainedModel, setting: Setting, recorder: Recorder) -> None:
    """compressed_kv and cascade over the `model`, as an 8B with a context of 128k."""
    shape, context = enlarged_shape(setting), 512 if setting.is_small else CONTEXT
    if lacking := setting.lacks(num_bytes=4 * shape.kv_values * shape.layers * context):
        recorder.missing(f"replay: {lacking}")
        return
    seen = _acceptances(setting)
    recorder.found("replay: what the small model accepted", seen)
    table: list[dict[str, object]] = []
    nodes = (1, 2) if setting.is_small else _NODES
    clock = Clock(setting.device, rounds=3 if setting.is_small else 9, limit_s=2.0)
    ways = (GRAPH,) if setting.is_cuda else (EAGER,)
    for way, target in timed_targets(model, setting, recorder, ways=ways).items():
        cache, placement = filled_cache(target, shape, context)
        score = {n: clock.median_ms(score_call(target, cache, placement, n)) for n in nodes}
        for weights, drafting in draft_variants(target, recorder).items():
            for budget in (32,) if setting.is_small else _BUDGETS:
                draft = {
                    count: clock.median_ms(view_call(drafting, cache, placement, budget, count))
                    for count in (1, 16)
                }
                costs = Costs(score, draft)
                table += [
                    {
                        "way": way,
                        "drafter": one.drafter,
                        "text": one.text,
                        "weights": weights,
                        "budget": budget,
                        "draft_ms": draft[1],
                        "plain_ms": score[1],
                        "speed": costs.speed(one),
                        "label": LABEL,
                    }
                    for one in seen
                ]
                recorder.found("replay", table)
        cache.release()
        target.free()
        setting.free()


def _acceptances(setting: Setting) -> list[Acceptance]:
    """Of a chain of each depth, and of a cascade, on a copied and on an open-ended text. The view
    shows about a quarter of the text."""
    model = load_model(resolve_path(MODEL), dtype="float32", device=str(setting.device))
    depths = _DEPTHS[:1] if setting.is_small else _DEPTHS
    texts, budget, tokens = _texts(setting)
    found = []
    for depth in depths:
        found += [_run(model, setting, text, budget, tokens, depth, False) for text in texts]
    return found + [_run(model, setting, text, budget, tokens, 8, True) for text in texts]


def _texts(setting: Setting) -> tuple[Sequence[tuple[str, str]], int, int]:
    """((name, prompt), ...), the view's budget, and how many tokens are generated."""
    chars = 200 if setting.is_small else 4000
    texts = (
        ("quoting", quote(Random("replay"), held_out=True, num_chars=chars).prompt_text),
        ("open-ended", story(Random("replay"), held_out=True).prompt_text * 4),
    )
    return texts, chars // 4, 6 if setting.is_small else 160


def _run(
    model: PreTrainedModel,
    setting: Setting,
    named: tuple[str, str],
    budget: int,
    tokens: int,
    depth: int,
    is_cascade: bool,
) -> Acceptance:
    name, text = named
    counted = CountedForwards()
    view = CompressedKV(
        policy="snapkv",
        budget=budget,
        max_share=1.0,
        max_depth=depth,
        min_confidence=0.3,
        forward=counted,
    )
    drafter = Cascade(PromptLookup(), view) if is_cascade else view
    engine = load(
        model,
        load_processor(resolve_path(MODEL)),
        drafter=drafter,
        overrides=["decode.controller=fixed", *setting.overrides],
    )
    result = engine.generate(text, temperature=0.0, max_new_tokens=tokens, seed=0)
    what = "cascade: prompt_lookup, compressed_kv" if is_cascade else "compressed_kv"
    return Acceptance(
        f"{what}, at most {depth} deep",
        name,
        len(result.tokens),
        dict(result.stats.choices.budgets),
        dict(counted.nodes),
    )


def _at(costs: Mapping[int, float], nodes: int) -> float:
    """Of the nearest number of nodes that was measured and is no smaller, else of the largest."""
    larger = [count for count in costs if count >= nodes]
    return costs[min(larger)] if larger else costs[max(costs)]
