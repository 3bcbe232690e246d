"""A scenario: a model, an engine and rounds of cases, all of it from one seed."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from families import FAMILIES
from torch import Tensor

from mmspec.build import build_engine
from mmspec.config import Config, DecodeConfig
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.engine import Engine
from mmspec.errors import ModelError
from mmspec.kv import KVCache
from mmspec.requests import Result
from mmspec.verify import VERIFIERS

from .architectures import ADAPTED, OWN, take_in
from .cases import Case, Inputs, Reading, draw_case, draw_prompt, extended
from .chats import played_chat
from .clients import play_clients
from .drafting import AnyDrafter, Knowing, Truths, draw_drafters
from .drawn import RULES, drawing, played_drawn
from .files import played_file
from .forms import play_forms
from .frameworks import play_frameworks
from .judge import alone, by_transformers, differences, is_tie, leaks, rounding_of, watched
from .killed import play_killed
from .meddling import meddled, rewritten
from .models import FEW_POSITIONS, Model, Probing, built, plain_engine, probed_once, speaking
from .play import PLAYS, by_both
from .report import Refused, Report, may_refuse
from .rough import play_rough
from .sabotage import sabotaged
from .settings import draw_cache, draw_decode
from .shelf import Shelf
from .steering import LAST_LETTER
from .talks import play_talk
from .tenants import play_tenants
from .through import played_through

KINDS: dict[str, Callable[[random.Random, Report, Path], None]] = {
    "talk": play_talk,
    "clients": play_clients,
    "forms": play_forms,
    "tenants": play_tenants,
    "frameworks": play_frameworks,
    "rough": play_rough,
    "killed": play_killed,
}
"""Beside "engine", all scenarios that are played."""


class Scene(NamedTuple):
    """What the rounds of a scenario have in common."""

    draw: random.Random
    report: Report
    plain: Engine
    engine: Engine
    model: Model
    truths: Truths
    drafters: Sequence[AnyDrafter]
    shelf: Shelf
    beside: Engine | None  # another engine of the same model


def run(seed: int, *, kind: str = "engine", family: str | None = None) -> Report:
    """Draws the scenario of this seed, plays it, and compares. `kind`: one of KINDS."""
    draw, report = random.Random(seed), Report(seed)
    try:
        with TemporaryDirectory() as folder:
            if kind == "engine":
                _play_engine(draw, report, family, Path(folder))
            else:
                KINDS[kind](draw, report, Path(folder))
    except Refused as refused:
        report.refused = str(refused)
    return report


def _play_engine(draw: random.Random, report: Report, family: str | None, folder: Path) -> None:
    drawn = draw.choice([*OWN, ADAPTED])
    family = family or drawn
    if family == ADAPTED:
        take_in(family)
    dtype = draw.choice(["float64"] * 4 + ["float32"])
    has_few = FAMILIES[family].kind == "text" and draw.random() < 0.15
    if family not in OWN:  # its positions may be a table of any form
        has_few = False
    model = Model(family, dtype, has_few)
    if why := _unusable(model):
        raise Refused(why)
    plain = plain_engine(model)
    if draw.random() < 0.12 and not has_few:
        _play_drawn(draw, report, plain, model._replace(dtype="float64"))
    else:
        _play_exact(draw, report, plain, model, folder)


def _unusable(model: Model) -> str | None:
    """Why a family that is none of `OWN` is not played: docs/models.md says which ones decode."""
    if model.family in OWN:
        return None
    try:
        built(model)
    except Exception:  # the sweep tells them
        return "a tiny model of it cannot be built"
    try:
        plain_engine(model)
    except ModelError:
        return "the model is refused"
    return None


def _play_exact(
    draw: random.Random, report: Report, plain: Engine, model: Model, folder: Path
) -> None:
    """Under a rule that gives the seed's own text."""
    family, dtype, has_few = model.family, model.dtype, model.has_few
    truths: Truths = {}
    decode = draw_decode(draw)
    cache = draw_cache(draw)
    shelf = Shelf(folder, draw, plain, most=FEW_POSITIONS - 20 if has_few else None)
    with may_refuse():
        drafters = draw_drafters(draw, family, dtype, truths, plain.target, shelf)
        names = "+".join(drafter.name for drafter in drafters)
        report.title = f"{family} {dtype} {names} {decode} {cache}"
        engine = _built(model, Config(decode=decode, cache=cache), drafters)
        knowing = Knowing(truths, "none", plain.target.vocab_size)
        beside = _beside(draw, engine, model, decode, knowing) if draw.random() < 0.2 else None
    scene = Scene(draw, report, plain, engine, model, truths, drafters, shelf, beside)
    engines = [engine] if beside is None else [engine, beside]
    with (
        sabotaged(draw, engine) as done,
        watched(engines) as caches,
        rewritten(draw, plain.target.model) as rewrite,
    ):
        report.title += f" {done}"
        _play(scene, caches, rewrite)


def _built(model: Model, config: Config, drafters: Sequence[AnyDrafter], **kept: Any) -> Engine:
    decode = config.decode
    probed = probed_once(model, Probing.of(decode))
    return build_engine(config, built(model), speaking(), drafters, probed=probed, **kept)


def _beside(
    draw: random.Random, engine: Engine, model: Model, decode: DecodeConfig, knowing: Knowing
) -> Engine:
    """Another engine of the same model, that learns and keeps what the first does."""
    config = Config(decode=replace(decode, max_nodes=draw.choice([2, 12, 20])))
    drafters = [PromptLookup(min_match=1, min_confidence=0.0), knowing]
    beside = _built(model, config, drafters, controller=engine._drafts.controller)
    if draw.random() < 0.7:
        beside.share_cache(engine)
    return beside


def _play_drawn(draw: random.Random, report: Report, plain: Engine, model: Model) -> None:
    """Under a rule that divides by the probabilities that tokens were drawn with."""
    rule = draw.choice(RULES)
    plain, family = plain_engine(model), model.family
    made = drawing(draw, family, rule, plain.target.vocab_size)
    most = draw.choice([1, 3, 12, 20, 64])

    def make_engine(draw: random.Random) -> Engine:
        decode = replace(draw_decode(draw), verifier=rule, controller="fixed", max_nodes=most)
        # Rows share the room for states: where it is short, a row's trees depend on the others.
        decode = replace(decode, exactness="standard", state_bytes=4 * 2**30)
        cache = draw_cache(draw)
        if made.reads_prompts:
            cache = replace(cache, prefix_bytes=0)
        return _built(model, Config(decode=decode, cache=cache), [made.make()])

    report.title = f"{family} {rule} {most} nodes"
    with may_refuse():
        make_engine(draw)
    texts: list[Inputs] = []
    for number in range(draw.choice([1, 2])):
        report.begin(number, f"verifier {rule}")
        cases = [
            _draw_case(draw, texts, plain, family, has_few=False, is_greedy=False)
            for _ in range(draw.choice([1, 2, 3]))
        ]
        cases = [_kept_seed(case) for case in cases]
        told: list[str] = []
        played = played_drawn(draw, make_engine, plain, cases, told, is_target=made.is_target)
        for case, (got, wrong) in zip(cases, played, strict=True):
            report.wrong += [f"({case}): {each}" for each in wrong]
            report.count(got)
        report.title += " | " + "; ".join(told)


_ONCE = ("seed", "max_time", "on_prefill")  # for a case that is asked again


def _kept_seed(case: Case) -> Case:
    how = {name: value for name, value in case.how.items() if name not in _ONCE}
    return replace(case, how=how)


def _play(scene: Scene, caches: Sequence[KVCache], rewrite: Callable[[], None]) -> None:
    """Some rounds of cases; `truths` are told what is right before it is asked for."""
    draw, report, engine, plain = scene.draw, scene.report, scene.engine, scene.plain
    family, dtype, has_few = scene.model
    truths, drafters, shelf = scene.truths, scene.drafters, scene.shelf
    is_greedy = engine._rule is VERIFIERS["greedy"]
    exact = rounding_of(plain, dtype)
    if family not in OWN and dtype == "float32":  # weights that nobody chose by their logits
        exact *= 20
    texts: list[Inputs] = [*shelf.prompts]
    is_meddled = draw.random() < 0.25
    is_plain_text = FAMILIES[family].kind == "text"  # no letter of its is a placeholder
    keeps_tokenizer = any(
        getattr(drafter, kept, None)
        for drafter in drafters
        for kept in ("datastores", "generated_path")
    )
    for number in range(draw.choice([1, 1, 2, 3])):
        if number and draw.random() < (0.6 if family == ADAPTED else 0.2):
            report.begin(number, "after weights were written")
            rewrite()
        kind = draw.random()
        if kind < 0.2 and not has_few and dtype == "float64" and not keeps_tokenizer:
            report.begin(number, "through transformers")
            report.wrong += played_through(draw, drafters, plain, family, report)
            continue
        if kind < 0.3 and not has_few and dtype == "float64" and is_plain_text:
            report.begin(number, "a chat")
            report.wrong += played_chat(draw, engine, plain, report, exact=exact)
            continue
        if kind < 0.37 and texts and dtype == "float64" and not has_few:
            report.begin(number, "a file of answers")
            report.wrong += played_file(draw, engine, plain, report, texts, shelf.folder.parent)
            continue
        cases = [
            _draw_case(draw, texts, plain, family, has_few=has_few, is_greedy=is_greedy)
            for _ in range(draw.choice([1, 2, 3, 4]))
        ]
        known = [[alone(plain, case, sample) for sample in case.samples] for case in cases]
        for case, results in zip(cases, known, strict=True):
            ids = tuple(case.prompt["input_ids"][0].tolist())
            for result in results:
                if result.seed is not None:
                    truths[ids, result.seed, result.sample] = result.tokens
        play, asked = draw.choice(list(PLAYS)), cases
        if is_meddled:
            asked = [meddled(draw, case, engine, shelf) for case in cases]
        how = play if scene.beside is None else "two engines"
        report.begin(number, how + ", meddled" * is_meddled)
        report.title += f" of {len(cases)}"
        if scene.beside is not None:
            answers = by_both(engine, scene.beside, asked, draw)
        else:
            answers = PLAYS[play](engine, asked, draw)
        for place, (case, expected, got) in enumerate(zip(cases, known, answers, strict=True)):
            if "seed" in case.how and got.seed is not None:
                expected = [alone(plain, case, s, got.seed) for s in case.samples]
            wrong = _of_case(case, expected, got, exact)
            read = asked[place].how.get("on_prefill")
            if isinstance(read, Reading) and play != "left_alone":  # which asks twice
                count = case.prompt["input_ids"].shape[1]
                wrong += read.wrong(count, begun=bool(got.tokens))
            is_rounded = dtype == "float32" or bool(plain.target.state_kinds)
            if wrong and is_rounded and any(is_tie(plain, case, e, got) for e in expected):
                report.ties += 1
                wrong = []
            report.wrong += [f"round {number}, case {place} ({case}): {each}" for each in wrong]
            report.count(got)
            if dtype == "float64" and draw.random() < 0.5:
                wrong = by_transformers(plain, case, expected[0])
                report.wrong += [f"round {number}, case {place} ({case}): {each}" for each in wrong]
        report.wrong += [f"round {number}: {each}" for each in leaks(engine, caches)]


def _of_case(case: Case, expected: list[Result], got: Result, exact: float) -> list[str]:
    by_number = {result.sample: result for result in got.samples}
    if expected[0].seed is None:
        return list(differences(expected[0], got, may_close=False, exact=exact))
    if len(by_number) != len(expected):
        return [f"{len(by_number)} samples of {len(expected)}: {got.error!r}"]
    told = {"logprobs_of": case.options.get("logprobs_of", "raw")}
    if told["logprobs_of"] == "processed":  # rounding is divided by it, too
        exact /= min(case.options["temperature"] or 1.0, 1.0)
    may_close, may_stop = case.cancel_after is not None, "max_time" in case.how
    return [
        f"sample {right.sample}: {each}"
        for right in expected
        for each in differences(
            right,
            by_number[right.sample],
            may_close=may_close,
            may_stop=may_stop,
            exact=exact,
            **told,
        )
    ]


def _draw_case(
    draw: random.Random,
    texts: list[Inputs],
    plain: Engine,
    family: str,
    *,
    has_few: bool,
    is_greedy: bool,
) -> Case:
    prompt = draw.choice(texts) if texts and draw.random() < 0.6 else None
    if prompt is None:
        prompt = draw_prompt(draw, family, most=FEW_POSITIONS - 1 if has_few else None)
    elif draw.random() < 0.6 and not (has_few and _room(prompt) < 4):  # a chat's next turn
        said = plain.generate(prompt, max_new_tokens=4, temperature=0.0, ignore_eos=True).tokens
        tail = [draw.randrange(3, LAST_LETTER) for _ in range(draw.randint(0, 5))]
        longer = extended(prompt, [*said[: draw.randint(0, 4)], *tail])
        prompt = longer if not has_few or _room(longer) > 4 else prompt
    texts.append(prompt)
    config = plain.target.model.generation_config
    room = _room(prompt) + draw.choice([0, 0, 0, 1]) if has_few else 10**6
    return draw_case(
        draw,
        prompt,
        config,
        lambda case: alone(plain, case, case.samples[0]),
        room=max(room, 1),
        is_greedy=is_greedy,
    )


def _room(prompt: Inputs) -> int:
    ids: Tensor = prompt["input_ids"]
    return FEW_POSITIONS - ids.shape[1]
