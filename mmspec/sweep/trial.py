"""One architecture's trial: is it decoded, and are its texts those of plain decoding?"""

import inspect
import time
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.beginnings import num_shared
from mmspec.build import build_engine
from mmspec.check.stress import Stress
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.encoders.media import says_of_tokens
from mmspec.engine import Engine
from mmspec.errors import ModelError
from mmspec.inputs import from_inputs
from mmspec.requests import Request
from mmspec.state import MediaKind
from mmspec.sweep.build import build
from mmspec.sweep.media import MEDIA, media_inputs
from mmspec.sweep.names import Architecture, Kind
from mmspec.sweep.texts import text_tokens
from mmspec.target import Target
from mmspec.target.families import refuse_unsupported
from mmspec.target.probe import ProbeReport, probe
from mmspec.target.tower import quick_blocks

Verdict = Literal["same", "differs", "refused", "unbuilt", "failed"]
NEW_TOKENS = 12
PROMPT_TOKENS = (31, 12, 22)  # longer and shorter than a sliding window of 8
CHUNK_TOKENS = 7
UNTRIED = ("no form of input", "no input made", "generate:")  # how what came of media begins
TOGETHER = "together"  # beside the kinds of media: what came of all of them in one prompt
_SAMPLED: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "seed": 5}
_GREEDY: dict[str, Any] = {"temperature": 0.0}


@dataclass(frozen=True)
class Trial:
    """What came of one architecture. Plain values: it crosses processes and goes to JSON."""

    model_type: str
    class_name: str
    kind: Kind
    verdict: Verdict
    reason: str = ""  # why it is refused, unbuilt, failed, or what differs
    shape: str = ""  # what it is scored as: tree, chain, plain
    attention: str = ""  # tree: mmspec's own; model: the model's; none: no layer attends
    attention_failure: str = ""  # why it is not mmspec's
    dtype: str = ""
    as_generate: str = ""  # same, differs, or why transformers' generate gave nothing to compare
    media: Mapping[str, str] = field(
        default_factory=dict
    )  # image, audio, video, TOGETHER -> same, or why not
    cuts: str = ""  # why prompts are not cut, where they are not
    accepted: int = 0  # drafted tokens that were accepted
    num_different: int = 0  # different tokens in the longest text: 1 proves little
    seconds: float = 0.0


class _Differs(Exception):
    """A text that is not what it should be."""


def try_architecture(architecture: Architecture) -> Trial:
    """Builds the architecture's tiny model in float64, or float32 where it insists, and tries it.
    Never raises: what goes wrong is told in the Trial."""
    start = time.perf_counter()
    trial = Trial(
        architecture.model_type, architecture.class_name, architecture.kind, verdict="failed"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dtype in (torch.float64, torch.float32):
            try:
                model = build(architecture, dtype)
            except Exception as error:
                trial = replace(trial, verdict="unbuilt", reason=_told(error))
                continue
            trial = replace(trial, dtype=str(dtype).removeprefix("torch."), verdict="failed")
            trial = try_model(model, trial)
            if trial.verdict != "failed":
                break
        if trial.verdict == "same" and trial.dtype == "float64":
            trial = _also_in_float32(architecture, trial)
    return replace(trial, seconds=round(time.perf_counter() - start, 1))


def try_model(model: PreTrainedModel, trial: Trial) -> Trial:
    """The trial of a model that is built; `trial` is what is known of it."""
    texts = [_text(length, seed) for seed, length in enumerate(PROMPT_TOKENS)]
    try:
        refuse_unsupported(model)
        target, report = probe(model, blocks=quick_blocks(model, copied=False))
    except ModelError as error:
        return replace(trial, verdict="refused", reason=str(error))
    except Exception as error:
        return replace(trial, verdict="failed", reason=f"probe: {_told(error)}")
    trial = replace(
        trial,
        shape=report.shape,
        attention=report.attention if target.mask_rule.kinds else "none",
        attention_failure=report.attention_failure,
        cuts=target.cuts.whole_because or "",
    )
    try:
        trial = _compared(model, target, report, texts, trial)
    except _Differs as error:
        return replace(trial, verdict="differs", reason=str(error))
    except Exception as error:
        return replace(trial, verdict="failed", reason=_told(error))
    return _with_media(replace(trial, verdict="same"), MEDIA, model, target, report)


def _also_in_float32(architecture: Architecture, trial: Trial) -> Trial:
    """Towers may insist on float32: with what media no input was made for."""
    kinds = [kind for kind in MEDIA if trial.media.get(kind, "").startswith(UNTRIED)]
    if not kinds:
        return trial
    try:
        model = build(architecture, torch.float32)
        target, report = probe(model, blocks=quick_blocks(model, copied=False))
    except Exception:  # what is known of it stays
        return trial
    return _with_media(trial, kinds, model, target, report)


def _with_media(
    trial: Trial,
    kinds: Iterable[MediaKind],
    model: PreTrainedModel,
    target: Target,
    report: ProbeReport,
) -> Trial:
    """The trial, with what came of prompts with each kind of media, and of all kinds in one."""
    made: list[list[dict[str, Tensor]]] = []
    for kind in kinds:
        found, changes = _media_prompts(model, kind), dict[str, Any]()
        if not isinstance(found, str):
            made.append(found)
            try:
                also = _compared(model, target, report, found, trial)
                found, changes = also.as_generate, {"accepted": also.accepted}
            except _Differs as error:
                found, changes = "differs", {"verdict": "differs", "reason": f"{kind}: {error}"}
            except Exception as error:
                found = f"failed: {_told(error)}"
        if found:
            trial = replace(trial, media={**trial.media, kind: found}, **changes)
    if len(made) < 2:
        return trial
    prompts = [_joined(each) for each in zip(*made, strict=True)]
    try:
        _generated(model, prompts[0])
    except Exception as error:  # it takes one kind a prompt, or the prompts are none
        return replace(trial, media={**trial.media, TOGETHER: f"generate: {_told(error)}"})
    try:
        _compared(model, target, report, prompts, trial)
    except _Differs as error:
        return replace(trial, verdict="differs", reason=f"several kinds of media: {error}")
    except Exception as error:
        return replace(trial, verdict="failed", reason=f"several kinds of media: {_told(error)}")
    return replace(trial, media={**trial.media, TOGETHER: "same"})


def _joined(prompts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One behind the other in one prompt; the media of each are of another kind."""
    joined: dict[str, Tensor] = {}
    for prompt in prompts:
        shape = prompt["input_ids"].shape
        for name, value in prompt.items():
            is_continued = name in joined and says_of_tokens(name, value, shape)
            joined[name] = torch.cat([joined[name], value], dim=1) if is_continued else value
    return joined


def _compared(
    model: PreTrainedModel,
    target: Target,
    report: ProbeReport,
    prompts: Sequence[Mapping[str, Tensor]],
    trial: Trial,
) -> Trial:
    """Raises _Differs where a text is not plain decoding's."""
    stress = Stress(target.vocab_size)
    engine = _engine(model, target, report, [stress])
    plain = {}
    as_generate = "same"
    for name, options in (("greedy", _GREEDY), ("sampled", _SAMPLED)):
        plain[name] = [
            engine.generate(dict(p), speculate=False, max_new_tokens=NEW_TOKENS, **options).tokens
            for p in prompts
        ]
    try:
        expected = [_generated(model, prompt) for prompt in prompts]
    except Exception as error:
        as_generate = f"generate: {_told(error)}"
    else:
        _same("greedy, as generate", expected, plain["greedy"])
    accepted = 0
    for name, options in (("greedy", _GREEDY), ("sampled", _SAMPLED)):
        for prompt, tokens in zip(prompts, plain[name], strict=True):
            stress.tell(from_inputs(prompt, model.config), tokens)
        requests = [Request(dict(p), max_new_tokens=NEW_TOKENS, **options) for p in prompts]
        decoded = {"batched": engine.generate(requests)}
        if name == "greedy":
            decoded["alone"] = [engine.generate(request) for request in requests]
        for where, results in decoded.items():
            for result in results:
                if result.error is not None:
                    raise result.error
            _same(f"{name}, {where}", plain[name], [result.tokens for result in results])
            accepted += sum(result.stats.accepted_tokens for result in results)
    if report.shape != "plain":
        cut = _engine(model, target, report, [], chunk=CHUNK_TOKENS, prefix_bytes=2**24)
        for where in ("read in chunks", "reused"):
            found = [cut.generate(request).tokens for request in requests]
            _same(f"sampled, {where}", plain["sampled"], found)
        if not accepted:
            raise _Differs("no drafted token was accepted: nothing is shown")
    distinct = max(len(set(tokens)) for texts in plain.values() for tokens in texts)
    return replace(
        trial, accepted=trial.accepted + accepted, as_generate=as_generate, num_different=distinct
    )


def _engine(
    model: PreTrainedModel,
    target: Target,
    report: ProbeReport,
    drafters: Sequence[Any],
    *,
    chunk: int = 0,
    prefix_bytes: int = 0,
) -> Engine:
    config = Config(
        decode=DecodeConfig(max_nodes=12, max_rows=3, controller="fixed", prefill_chunk=chunk),
        cache=CacheConfig(prefix_bytes=prefix_bytes, feature_bytes=prefix_bytes),
    )
    return build_engine(config, model, None, drafters, probed=(target, report.shape))


def _generated(model: PreTrainedModel, prompt: Mapping[str, Tensor]) -> tuple[int, ...]:
    """What transformers' generate says greedily."""
    inputs = {
        name: value.to(model.dtype) if value.is_floating_point() else value
        for name, value in prompt.items()
    }
    inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
    # Noise on what is heard (VibeVoice) is left out here, too.
    still = {"sample": False} if "sample" in inspect.signature(model.forward).parameters else {}
    with torch.no_grad():
        output = model.generate(**inputs, **still, max_new_tokens=NEW_TOKENS, do_sample=False)
    ids = output if isinstance(output, Tensor) else output.sequences
    return tuple(ids[0, prompt["input_ids"].shape[1] :].tolist())


def _same(where: str, expected: Sequence[Sequence[int]], found: Sequence[Sequence[int]]) -> None:
    for row, (own, other) in enumerate(zip(expected, found, strict=True)):
        if tuple(own) == tuple(other):
            continue
        raise _Differs(
            f"{where}, row {row}: first difference at token {num_shared(own, other)} of {len(own)} "
            f"and {len(other)}"
        )


def _text(length: int, seed: int) -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([list(text_tokens(length, seed))])}


def _media_prompts(model: PreTrainedModel, kind: MediaKind) -> list[dict[str, Tensor]] | str:
    """Three ragged prompts, one of them without; or why there are none: empty where the model has
    no such input."""
    try:
        texts = [list(text_tokens(length, seed)) for seed, length in enumerate(PROMPT_TOKENS)]
        first = media_inputs(model, kind, texts[0], seed=0)
        if isinstance(first, str):
            return first
        second = media_inputs(model, kind, texts[1], seed=1)
        assert not isinstance(second, str)
        return [first, second, {"input_ids": torch.tensor([texts[2]])}]
    except Exception as error:
        return f"no input made: {_told(error)}"


def _told(error: BaseException) -> str:
    """One line, with the place in the code."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{place}"
