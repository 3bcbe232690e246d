"""Every way of decoding beside plain decoding: drafters, greedy and sampled, alone and batched."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from mmspec.beginnings import num_shared
from mmspec.check.difference import Difference, explain
from mmspec.check.rounding import rounding_bound
from mmspec.check.stress import Stress
from mmspec.engine import Engine
from mmspec.requests import Request, Result, build_request
from mmspec.state import Prompt
from mmspec.stats import StatsRecorder
from mmspec.target.native import native_inputs

TRANSFORMERS, PLAIN_BATCH = "transformers' generate", "plain, batched"


@dataclass(frozen=True)
class Comparison:
    """One way of decoding at one sampling: all prompts beside their plain texts."""

    way: str  # who drafted and how: "prompt_lookup, alone"
    sampling: str  # "greedy" or "seed 3"
    texts: int
    identical: int
    tokens: int  # of the plain texts
    same_tokens: int  # of them, those before the first difference
    accepted: int  # drafted tokens that were accepted: without any, little is proven
    differences: Mapping[int, Difference]  # prompt -> the first of its text
    is_ours: bool = True  # False: shown beside, and no part of the verdict


@dataclass(frozen=True)
class CheckReport:
    """All comparisons. What counts is whether speculation changes a text."""

    dtype: str
    comparisons: tuple[Comparison, ...]

    @property
    def differences(self) -> list[Difference]:
        """Those that speculation made, or in which plain decoding is not transformers'."""
        ours = [one for one in self.comparisons if one.is_ours]
        return [found for one in ours for found in one.differences.values()]

    def places(self) -> list[tuple[Comparison, int, Difference]]:
        """(comparison, prompt, difference), one of each place, the worst first: what rounding does
        not explain, then what speculation made."""
        found = [(one, i, d) for one in self.comparisons for i, d in one.differences.items()]
        found.sort(key=lambda place: (place[2].verdict != "bug", not place[0].is_ours))
        first: dict[tuple[str, int, int], tuple[Comparison, int, Difference]] = {}
        for comparison, prompt, difference in found:
            key = (comparison.sampling, prompt, difference.token)
            first.setdefault(key, (comparison, prompt, difference))
        return list(first.values())

    @property
    def is_identical(self) -> bool:
        return not self.differences

    @property
    def has_bug(self) -> bool:
        """Whether a text differs that rounding cannot explain."""
        return any(found.verdict == "bug" for found in self.differences)

    @property
    def accepted(self) -> int:
        """Drafted tokens accepted, the stress drafter's left out."""
        own = [one for one in self.comparisons if not one.way.startswith(Stress.name)]
        return sum(one.accepted for one in own)


def run_check(
    engine: Engine,
    requests: Sequence[Request],
    *,
    seeds: Sequence[int],
    sampling: Mapping[str, object],
    max_new_tokens: int,
    stressed: tuple[Engine, Stress] | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> CheckReport:
    """Decodes each request plainly and in every other way, greedily and with each seed under the
    `sampling` options (fields of Request).

    `stressed` is an engine of the same target with a Stress drafter, and that drafter. Raises
    MmspecError where plain decoding itself fails.
    """
    encoded = [engine.prepare(request, max_new_tokens=max_new_tokens) for request in requests]
    modes: dict[str, dict[str, object]] = {"greedy": {"temperature": 0.0, "seed": 0}}
    modes |= {f"seed {seed}": {**sampling, "seed": seed} for seed in seeds}
    rounding = _Rounding(engine)
    comparisons = []
    for number, (name, options) in enumerate(modes.items(), start=1):
        asked = [
            # Always drafting: what a controller would leave out is to be seen too.
            build_request(request, {**options, "max_new_tokens": max_new_tokens, "speculate": True})
            for request in encoded
        ]
        mode = f"{name} ({number} of {len(modes)})"
        progress(f"{mode}: plain decoding")
        # The others may find a prompt's KV in the store: reuse is checked too.
        plain = [engine.generate(request, speculate=False, reuse=False) for request in asked]
        ways = _ways(engine, stressed, asked, plain, is_greedy=name == "greedy")
        for place, way in enumerate(ways, start=1):
            progress(f"{mode}: {way.name} ({place} of {len(ways)})")
            comparisons.append(_compare(engine, way, name, asked, plain, rounding))
    return CheckReport(str(engine.target.dtype).removeprefix("torch."), tuple(comparisons))


@dataclass(frozen=True)
class Way:
    """A way of decoding."""

    name: str
    decode: Callable[[Sequence[Request]], list[Result]]
    is_batched: bool  # whether a text could depend on the others

    def again(self, requests: Sequence[Request], index: int, request: Request) -> Result:
        """`request` in the place of the one at `index`."""
        if not self.is_batched:
            return self.decode([request])[0]
        return self.decode([*requests[:index], request, *requests[index + 1 :]])[index]


def _ways(
    engine: Engine,
    stressed: tuple[Engine, Stress] | None,
    requests: Sequence[Request],
    plain: Sequence[Result],
    *,
    is_greedy: bool,
) -> list[Way]:
    names = [drafter.name for drafter in engine.drafters]
    engines = {"+".join(names) or "none": engine}
    if stressed is not None:
        stress_engine, stress = stressed
        engines[stress.name] = stress_engine
        for request, result in zip(requests, plain, strict=True):
            assert isinstance(request.prompt, Prompt)
            stress.tell(request.prompt, result.tokens)
    ways: list[Way] = []
    for name, one in engines.items():
        ways.append(Way(f"{name}, alone", partial(_alone, one), False))
        if len(requests) > 1:
            ways.append(Way(f"{name}, batched", one.generate, True))
    if engine.target.dtype not in (torch.float32, torch.float64) and len(requests) > 1:
        ways.append(Way(PLAIN_BATCH, partial(engine.generate, speculate=False), True))
    if is_greedy:  # transformers draws its samples from another source
        ways.append(Way(TRANSFORMERS, partial(_natively, engine), False))
    return ways


def _alone(engine: Engine, requests: Sequence[Request]) -> list[Result]:
    return [engine.generate([request])[0] for request in requests]


def _natively(engine: Engine, requests: Sequence[Request]) -> list[Result]:
    """transformers' own greedy texts: the one reference that shares no code with ours."""
    model, results = engine.target.model, []
    for request in requests:
        prompt = request.prompt
        assert isinstance(prompt, Prompt)
        output = model.generate(
            **native_inputs(model, prompt),
            do_sample=False,
            max_new_tokens=request.max_new_tokens,
            logits_processor=list(request.logits_processors),
        )
        tokens = tuple(output[0, prompt.num_tokens :].tolist())
        results.append(Result("", tokens, "length", 0, StatsRecorder().finished(len(tokens))))
    return results


def _compare(
    engine: Engine,
    way: Way,
    sampling: str,
    requests: Sequence[Request],
    plain: Sequence[Result],
    rounding: "_Rounding",
) -> Comparison:
    results = way.decode(requests)
    differences = {}
    for index, (mine, other) in enumerate(zip(plain, results, strict=True)):
        if mine.tokens == other.tokens and other.error is None:
            continue
        differences[index] = explain(
            engine,
            requests[index],
            mine,
            other,
            again=partial(way.again, requests, index),
            bound=partial(rounding.bound, requests[index], mine),
        )
    return Comparison(
        way.name,
        sampling,
        texts=len(results),
        identical=len(results) - len(differences),
        tokens=sum(len(mine.tokens) for mine in plain),
        same_tokens=sum(
            num_shared(mine.tokens, other.tokens)
            for mine, other in zip(plain, results, strict=True)
        ),
        accepted=sum(result.stats.accepted_tokens for result in results),
        differences=differences,
        is_ours=way.name != PLAIN_BATCH,
    )


class _Rounding:
    """The rounding bound of each prompt and plain text, measured when first asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._bounds: dict[tuple[object, ...], float] = {}

    def bound(self, request: Request, plain: Result) -> float:
        assert isinstance(request.prompt, Prompt)
        key = (id(request.prompt), plain.tokens)
        if key not in self._bounds:
            model = self._engine.target.model
            self._bounds[key] = rounding_bound(model, request.prompt, plain.tokens)
        return self._bounds[key]
