"""SamplingParams: what a user asks of the sampling, laid over the model's generation_config."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    MaxTimeCriteria,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
)

from mmspec.errors import InputError
from mmspec.logprobs import LogprobsOf

DEFAULT_MAX_NEW_TOKENS = 256
MAX_SEED = 2**64 - 1
NAMES_ELSEWHERE = {  # of options: as OpenAI and others call them -> ours
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "max_output_tokens": "max_new_tokens",
    "stop_sequences": "stop",
}
_LEAST, _MOST = 1e-30, 1e30  # what logits in float32 can be divided by, or have added to them


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """None means: as the model's generation_config says, which is transformers' rule.

    `temperature=0` is greedy; giving any of temperature, top_k, top_p, min_p asks for sampling
    unless `do_sample` says otherwise.
    """

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None  # 0: off
    top_p: float | None = None  # in (0, 1]
    min_p: float | None = None  # in [0, 1]
    repetition_penalty: float | None = None  # > 0; 1: off
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None  # token id -> added to its logit
    bad_words: str | Sequence[str] = ()
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    eos_token_id: int | Sequence[int] | None = None
    ignore_eos: bool = False
    stop: str | Sequence[str] = ()  # the text ends before the first of them
    seed: int | None = None  # None: fresh entropy, shown in result.seed
    n: int = 1  # samples of the prompt, decoded together; see Result.samples
    sample: int = 0  # the first one's number: the noise is of (seed, sample, position)
    logprobs: int | None = None  # of the chosen and so many likeliest tokens; 0: the chosen alone
    logprobs_of: LogprobsOf = "raw"  # log-softmax of the model's logits, or as "processed"
    prompt_logprobs: int | None = None  # the same of the prompt's tokens, always raw
    output_scores: bool = False  # keep the processed scores, as transformers does: Result.scores
    output_logits: bool = False  # keep the raw logits: Result.logits
    logits_processors: Sequence[LogitsProcessor] = ()
    prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None  # as transformers':
    # (the request's index in its call, ids (seq,)) -> the token ids that may come next
    stopping_criteria: Sequence[StoppingCriteria] = ()  # called after each token, in order, with
    # ids (1, seq) and the kept scores, None if they are not
    max_time: float | None = None  # seconds from the prefill on; checked after each token
    skip_special_tokens: bool = True
    generation_config: GenerationConfig | None = None  # in place of the model's

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, np.generic):  # a number of numpy's
                object.__setattr__(self, one.name, value.item())
            elif value is None and one.default == ():
                object.__setattr__(self, one.name, ())
        self.check(_RULES)
        for name in ("stop", "bad_words"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, (value,))
        if "" in self.stop:
            raise InputError("stop='': an empty stop string would end every text; leave it out")

    def check(self, rules: Iterable["Rule"]) -> None:
        """Raises InputError for a field that is not as its rule says. None is right where it is the
        field's default."""
        defaults = {one.name: one.default for one in fields(self)}
        for name, is_valid, expected in rules:
            value = getattr(self, name)
            is_left_out = value is None and defaults[name] is None
            if not (is_left_out or is_valid(value)):
                raise InputError(f"{name}={value!r:.80}: expected {expected}")

    @property
    def asks_for_sampling(self) -> bool | None:
        """True or False where the user decided between sampling and greedy, else None."""
        if self.do_sample is not None:
            return self.do_sample and self.temperature != 0
        if self.temperature is not None:
            return self.temperature > 0
        if any(value is not None for value in (self.top_k, self.top_p, self.min_p)):
            return True
        return None


def _is_number(value: object) -> bool:
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return is_number and abs(value) < math.inf  # type: ignore[arg-type]


def _is_term(value: object) -> bool:
    """Whether it can be added to logits in float32."""
    return _is_number(value) and abs(value) <= _MOST  # type: ignore[arg-type]


def _is_factor(value: object) -> bool:
    """Whether these can be multiplied and divided by it."""
    return _is_number(value) and _LEAST <= value <= _MOST  # type: ignore[operator]


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _are_texts(value: object) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, Sequence) and all(isinstance(item, str) for item in value)


def _are_token_ids(value: object) -> bool:
    ids = [value] if _is_count(value) else value
    return isinstance(ids, Sequence) and all(_is_count(t) and 0 <= t < 2**63 for t in ids)


def _are_callables(value: object) -> bool:
    """Classes can be called, too, and were meant to be: of a processor an object is expected."""
    return isinstance(value, Sequence) and all(
        callable(one) and not isinstance(one, type) for one in value
    )


def _is_bias(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        _is_count(token) and token >= 0 and _is_term(bias) for token, bias in value.items()
    )


Rule = tuple[str, Callable[..., bool], str]


def switches(*names: str) -> Iterator[Rule]:
    return ((name, lambda v: isinstance(v, bool), "True or False") for name in names)


_RULES: tuple[Rule, ...] = (
    (
        "temperature",
        lambda v: _is_number(v) and (v == 0 or _is_factor(v)),
        "a number >= 0 (0 is greedy)",
    ),
    ("top_k", lambda v: _is_count(v) and v >= 0, "a whole number >= 0 (0 is off)"),
    (
        "top_p",
        lambda v: _is_number(v) and 0 < v <= 1,
        "a number in (0, 1]; for greedy, temperature=0",
    ),
    ("min_p", lambda v: _is_number(v) and 0 <= v <= 1, "a number in [0, 1]"),
    ("repetition_penalty", _is_factor, "a number > 0 (1 is off)"),
    ("presence_penalty", _is_term, "a finite number"),
    ("frequency_penalty", _is_term, "a finite number"),
    ("max_new_tokens", lambda v: _is_count(v) and v >= 1, "a whole number >= 1"),
    ("min_new_tokens", lambda v: _is_count(v) and v >= 0, "a whole number >= 0"),
    ("stop", _are_texts, "a text or a list of texts"),
    ("bad_words", _are_texts, "a text or a list of texts"),
    ("logit_bias", _is_bias, "token ids >= 0, each with a finite number: {token_id: bias}"),
    *switches("do_sample", "ignore_eos", "output_scores", "output_logits", "skip_special_tokens"),
    (
        "generation_config",
        lambda v: isinstance(v, GenerationConfig),
        "transformers.GenerationConfig(...), or its values as options of their own",
    ),
    ("eos_token_id", _are_token_ids, "a token id in [0, 2^63), or a list of them"),
    ("seed", lambda v: _is_count(v) and 0 <= v <= MAX_SEED, "a whole number in [0, 2^64)"),
    ("n", lambda v: _is_count(v) and v >= 1, "a whole number >= 1"),
    ("sample", lambda v: _is_count(v) and 0 <= v < 2**32, "a whole number in [0, 2^32)"),
    ("logprobs", lambda v: _is_count(v) and v >= 0, "a whole number >= 0 (0: the chosen alone)"),
    ("logprobs_of", lambda v: v in ("raw", "processed"), "'raw' or 'processed'"),
    (
        "prompt_logprobs",
        lambda v: _is_count(v) and v >= 0,
        "a whole number >= 0 (0: the prompt's own tokens alone)",
    ),
    ("max_time", lambda v: _is_number(v) and v > 0, "seconds > 0"),
    ("prefix_allowed_tokens_fn", callable, "a function (index, ids) -> list of token ids"),
    ("stopping_criteria", _are_callables, "a list of transformers StoppingCriteria objects"),
    ("logits_processors", _are_callables, "a list of transformers LogitsProcessor objects"),
)

Params = TypeVar("Params", bound=SamplingParams)


def by_our_names(given: Mapping[str, object]) -> dict[str, object]:
    """The options by the names that they have here; None says nothing. Raises InputError for one
    option under two names."""
    options: dict[str, object] = {}
    names: dict[str, str] = {}
    for name, value in given.items():
        ours = NAMES_ELSEWHERE.get(name, name)
        if value is None:
            continue
        if ours in names:
            raise InputError(f"got {names[ours]}= and {name}=, which say the same; give one")
        names[ours], options[ours] = name, value
    return options


def merged_generation_config(
    model: PreTrainedModel,
    params: SamplingParams,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    prompt_length: int,
    max_new_tokens: int,
) -> GenerationConfig:
    """The request's whole generation_config: user's values, then the model's, then transformers'
    defaults. Raises InputError for modes that are not sampling or greedy search."""
    config = copy.deepcopy(params.generation_config or model.generation_config)
    for name, default in GenerationConfig._get_default_generation_params().items():
        if getattr(config, name, None) is None:
            setattr(config, name, default)
    sampling = params.asks_for_sampling
    if sampling is not None:
        config.do_sample = sampling
    for name in ("top_k", "top_p", "min_p", "repetition_penalty", "min_new_tokens"):
        value = getattr(params, name)
        if value is not None:
            setattr(config, name, value)
    if params.temperature:
        config.temperature = params.temperature
    for name in ("temperature", "repetition_penalty"):  # transformers refuses a whole number
        setattr(config, name, float(getattr(config, name)))
    if params.max_time is not None:
        config.max_time = params.max_time
    config.max_new_tokens = max_new_tokens
    config.max_length = prompt_length + max_new_tokens  # some processors count the prompt too
    if params.eos_token_id is not None:
        config.eos_token_id = params.eos_token_id
    if params.ignore_eos:
        config.eos_token_id = None
    if params.logit_bias:
        vocab_size = model.config.get_text_config(decoder=True).vocab_size
        outside = [token for token in params.logit_bias if token >= vocab_size]
        if outside:
            raise InputError(
                f"logit_bias: got token ids {outside[:5]}, expected ids below the vocabulary's "
                f"{vocab_size}"
            )
        bias = [[[int(token)], float(value)] for token, value in params.logit_bias.items()]
        config.sequence_bias = bias
    if params.bad_words:
        config.bad_words_ids = _bad_word_ids(params.bad_words, tokenizer)
    _refuse_other_modes(config)
    return config


def requested_max_new_tokens(
    model: PreTrainedModel, params: SamplingParams, *, prompt_length: int
) -> int | None:
    """What the user or the generation_config says; None where neither does. A `max_length` counts
    the prompt too, and leaves room for one token at least."""
    config = params.generation_config or model.generation_config
    if params.max_new_tokens or config.max_new_tokens:
        return params.max_new_tokens or config.max_new_tokens
    if config.max_length is None:
        return None
    return max(config.max_length - prompt_length, 1)


def stop_strings(config: GenerationConfig, params: SamplingParams) -> tuple[str, ...]:
    """The user's stop strings, else the generation_config's."""
    configured = getattr(config, "stop_strings", None) or ()
    return tuple(params.stop) or ((configured,) if isinstance(configured, str) else (*configured,))


def stopping_criteria(
    config: GenerationConfig, params: SamplingParams
) -> tuple[StoppingCriteria, ...]:
    """The user's criteria and the time limit, whose clock starts now."""
    limit = () if config.max_time is None else (MaxTimeCriteria(config.max_time),)
    return (*params.stopping_criteria, *limit)


def with_own_state(params: Params) -> Params:
    """The same request for another row: with copies of its processors and criteria, which may keep
    state. Raises InputError where one cannot be copied."""
    try:
        return replace(
            params,
            logits_processors=[copy.deepcopy(p) for p in params.logits_processors],
            stopping_criteria=[copy.deepcopy(c) for c in params.stopping_criteria],
        )
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(
            "several samples need their own logits processors and stopping criteria, and one of "
            f"them cannot be copied ({error}); expected n=1, or objects that copy.deepcopy takes"
        ) from error


def _bad_word_ids(
    words: Sequence[str], tokenizer: PreTrainedTokenizerBase | None
) -> list[list[int]]:
    """Each word's tokens, at the beginning of a text and after a space."""
    if tokenizer is None:
        raise InputError("bad_words need a tokenizer, and this engine has none; pass a processor")
    forms = [form for word in words for form in (word, " " + word.lstrip())]
    encoded = [tokenizer(form, add_special_tokens=False).input_ids for form in forms]
    if not all(encoded):
        raise InputError(f"bad_words={list(words)!r}: a word without tokens cannot be banned")
    return [list(ids) for ids in dict.fromkeys(map(tuple, encoded))]


def _refuse_other_modes(config: GenerationConfig) -> None:
    if (config.num_beams or 1) > 1:
        raise InputError(
            f"beam search (num_beams={config.num_beams}) is not supported: mmspec keeps the "
            "sampling or greedy distribution of one text; set num_beams=1"
        )
    if getattr(config, "penalty_alpha", None):
        raise InputError(
            f"contrastive search (penalty_alpha={config.penalty_alpha}) is not supported; "
            "leave penalty_alpha out"
        )
    for name, default in (
        ("num_return_sequences", 1),
        ("prompt_lookup_num_tokens", None),
        ("dola_layers", None),
    ):
        value = getattr(config, name, None)
        if value not in (None, default):
            raise InputError(f"generation_config.{name}={value!r} is not supported; leave it out")
    if getattr(config, "guidance_scale", None) not in (None, 1, 1.0):
        raise InputError(
            f"classifier-free guidance (guidance_scale={config.guidance_scale}) is not supported: "
            "it runs a second model pass a token; leave guidance_scale out"
        )
