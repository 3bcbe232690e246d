"""`model.generate(..., custom_generate=mmspec.custom_generate)`: mmspec's loop within transformers'
own generate, with its own output."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    MaxLengthCriteria,
    MaxTimeCriteria,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer

from mmspec.config import Config, DecodeConfig
from mmspec.controller import Speculate
from mmspec.drafters.base import Drafter
from mmspec.encoders.counts import count_features
from mmspec.errors import InputError
from mmspec.inputs.rows import split_rows
from mmspec.integrations.generate_call import GenerateCall
from mmspec.integrations.known_models import KnownModels
from mmspec.integrations.streaming import StreamFeed
from mmspec.params import MAX_SEED, with_own_state
from mmspec.requests import Request, Result
from mmspec.state import MediaKind
from mmspec.target.forward_lock import forward_lock
from mmspec.words import counted

_OMNI = (
    "qwen2_5_omni_thinker",
    "qwen3_omni_moe_thinker",
)  # in 5.17 their own repeats positions alone
_BESIDE = (  # what changes no token here
    "use_cache", "logits_to_keep", "return_dict", "output_",
    "sample",  # noise on what is heard, which is left out
)  # fmt: skip
_MODELS = KnownModels()  # forgets a model with the model


def custom_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    synced_gpus: bool = False,
    streamer: BaseStreamer | None = None,
    drafter: str | Drafter | Sequence[Drafter] | None = None,
    seed: int | Sequence[int] | None = None,
    speculate: Speculate = "auto",
    max_nodes: int = DecodeConfig.max_nodes,
    controller: Literal["auto", "fixed"] = "auto",
    verifier: str = DecodeConfig.verifier,
    **model_kwargs: object,
) -> GenerateDecoderOnlyOutput | Tensor:
    """For `generate`'s `custom_generate`: transformers calls it with all but `drafter` ...
    `verifier`, which the user gives to `generate` beside `custom_generate`:

        model.generate(**inputs, custom_generate=mmspec.custom_generate, drafter="prompt_lookup")

    `drafter` is as in `mmspec.load`: a name, drafters, "none" for plain decoding, None for the
    default, or with generate's `use_mtp` for "mtp". `seed` makes sampled text repeatable; of a
    batch, prompt i takes seed + i, or the i-th of a list. Without it, it is drawn from torch's
    generator, so `torch.manual_seed` holds. The i-th of `num_return_sequences` is sample i:
    `mmspec.load(model).generate(prompt, seed=seed + i, n=...)` gives the same texts. Greedy text is
    that of `generate` without `custom_generate`.

    Returns what transformers' own sampling does: sequences (batch, seq), padded on the right
    behind each row's end, or with `return_dict_in_generate` a GenerateDecoderOnlyOutput with
    `scores` and `logits` (a (batch, vocab) each step; zeros for rows that have ended) where asked,
    and `past_key_values` None. Each row is decoded without its padding: its processors and
    criteria are called with (1, seq) of its own tokens, the user's as copies of its own in a
    batch. A given `past_key_values` is neither read nor written: `input_ids` is the whole prompt.
    The model is left as it was found.

    Raises InputError for what is not there: beam search, hidden states, attentions,
    `inputs_embeds`; and what `Engine.generate` raises.
    """
    call = GenerateCall.of(model)
    _refuse(model, generation_config, input_ids, model_kwargs, synced_gpus=synced_gpus)
    samples = generation_config.num_return_sequences or 1
    repeats = samples if _repeats_entries(model) else 1
    count = partial(_count, model)
    prompts = split_rows(input_ids, model_kwargs, model.config, repeats=repeats, count=count)
    most = _max_length(generation_config, stopping_criteria) - input_ids.shape[1]
    seeds = _seeds(seed, len(prompts) // samples, draw=bool(generation_config.do_sample))
    pad = _pad_token(generation_config)
    streamer = streamer or call.streamer
    feed = streamer and StreamFeed(
        streamer, len(prompts), ends=_end_tokens(generation_config), pad=pad
    )
    requests = []
    for row, prompt in enumerate(prompts):
        request = Request(
            prompt,
            generation_config=_row_config(
                generation_config, padding=input_ids.shape[1] - prompt.num_tokens
            ),
            max_new_tokens=most,
            seed=seeds[row // samples],
            sample=row % samples,
            speculate=speculate,
            logits_processors=call.logits_processors,
            prefix_allowed_tokens_fn=call.prefix_allowed_tokens_fn,
            stopping_criteria=_criteria(stopping_criteria, call.stopping_criteria),
            output_scores=_is_kept(generation_config, "output_scores"),
            output_logits=_is_kept(generation_config, "output_logits"),
        )
        if row:
            request = with_own_state(request)
        if feed is not None:
            watched = (*request.stopping_criteria, feed.criterion(row))
            request = replace(request, stopping_criteria=watched)
        requests.append(request)
    if drafter is None and getattr(generation_config, "use_mtp", None):
        drafter = "mtp"
    config = Config(
        decode=DecodeConfig(
            verifier=verifier, controller=controller, max_nodes=max_nodes, max_rows=len(requests)
        )
    )
    results = _MODELS.engine(model, config, drafter).generate(requests)
    for result in results:
        if result.error is not None:
            raise result.error
    if feed is not None:
        feed.end()
    return _output(input_ids, results, generation_config, pad=pad)


def _count(model: PreTrainedModel, kind: MediaKind, tensors: Mapping[str, Tensor]) -> int:
    with forward_lock(model):  # meanwhile nothing stands in place of the encoder
        return count_features(model, kind, tensors)


def _repeats_entries(model: PreTrainedModel) -> bool:
    """Whether generate makes rows of several sequences by repeating each entry of each tensor,
    two pictures of one prompt apart. Some models do it a prompt at a time."""
    if model.config.model_type in _OMNI:
        return True
    name = "_expand_inputs_for_generation"
    return getattr(type(model), name, None) is getattr(GenerationMixin, name)


def _refuse(
    model: PreTrainedModel,
    config: GenerationConfig,
    input_ids: Tensor,
    model_kwargs: Mapping[str, object],
    *,
    synced_gpus: bool,
) -> None:
    """Raises InputError for what cannot be had here."""
    if input_ids.shape[1] == 0 or model_kwargs.get("inputs_embeds") is not None:
        raise InputError("got inputs_embeds; expected input_ids: drafters read tokens")
    for name in ("output_attentions", "output_hidden_states"):
        if _is_kept(config, name):
            raise InputError(
                f"{name}=True with return_dict_in_generate is not supported: a step scores a "
                f"tree, of which most nodes are dropped; leave {name} out"
            )
    if synced_gpus:
        raise InputError("synced_gpus=True is not supported: rows end at different steps")
    for name, own in inspect.signature(model.forward).parameters.items():
        value = model_kwargs.get(name)
        is_switch = isinstance(value, bool | int | float | str) and not name.startswith(_BESIDE)
        if is_switch and value != own.default and (value or own.default):
            raise InputError(f"got {name}={value!r:.60}, which is not handed on; leave it out")


def _is_kept(config: GenerationConfig, name: str) -> bool:
    return bool(config.return_dict_in_generate and getattr(config, name))


def _row_config(config: GenerationConfig, *, padding: int) -> GenerationConfig:
    """The same wishes for one row alone: lengths no longer count its padding. What `generate` has
    made a stopping criterion of is left to that."""
    own = copy.deepcopy(config)
    own.num_return_sequences = 1
    own.max_time = own.stop_strings = None
    if own.min_length:
        own.min_length = max(own.min_length - padding, 0)
    return own


def _max_length(config: GenerationConfig, criteria: Sequence[StoppingCriteria]) -> int:
    """Of prompt, padding and text; a user's MaxLengthCriteria takes the place of the config's."""
    limits = [c.max_length for c in criteria if isinstance(c, MaxLengthCriteria)]
    return min(limits, default=config.max_length)


def _criteria(
    prepared: Sequence[StoppingCriteria], given: Sequence[StoppingCriteria]
) -> tuple[StoppingCriteria, ...]:
    """The user's criteria and those of `generate` that a row can use as they are; its end and its
    length a row knows itself."""
    by_generate = [c for c in prepared if isinstance(c, MaxTimeCriteria | StopStringCriteria)]
    own = [c for c in given if not isinstance(c, MaxLengthCriteria) and c not in by_generate]
    return (*by_generate, *own)


def _seeds(seed: int | Sequence[int] | None, num_prompts: int, *, draw: bool) -> list[int]:
    """One a prompt."""
    if isinstance(seed, Sequence):
        if len(seed) != num_prompts:
            raise InputError(
                f"got {counted(len(seed), 'seed')} for {counted(num_prompts, 'prompt')}; expected "
                "one each"
            )
        return list(seed)
    if seed is None:  # greedy leaves torch's generator alone, as transformers does
        seed = int(torch.randint(2**63 - 1, ())) if draw else 0
    return [(seed + prompt) & MAX_SEED for prompt in range(num_prompts)]


def _end_tokens(config: GenerationConfig) -> list[int]:
    ends = config.eos_token_id
    return [ends] if isinstance(ends, int) else list(ends or ())


def _pad_token(config: GenerationConfig) -> int:
    """What stands behind a row that has ended: transformers' choice, the first EOS without one."""
    if config.pad_token_id is not None:
        return int(config.pad_token_id)
    return next(iter(_end_tokens(config)), 0)


def _output(
    input_ids: Tensor, results: Sequence[Result], config: GenerationConfig, *, pad: int
) -> GenerateDecoderOnlyOutput | Tensor:
    longest = max(len(result.tokens) for result in results)
    texts = [[*result.tokens, *[pad] * (longest - len(result.tokens))] for result in results]
    new = torch.tensor(texts, dtype=input_ids.dtype, device=input_ids.device)
    sequences = torch.cat([input_ids, new], dim=1)
    if not config.return_dict_in_generate:
        return sequences
    return GenerateDecoderOnlyOutput(
        sequences=sequences,
        scores=_by_step([result.scores for result in results], longest),
        logits=_by_step([result.logits for result in results], longest),
    )


def _by_step(rows: Sequence[Tensor | None], longest: int) -> tuple[Tensor, ...] | None:
    """(tokens, vocab) of each row -> (batch, vocab) of each step; None where nothing was kept."""
    kept = [row for row in rows if row is not None]
    if not kept:
        return None
    padded = [torch.cat([r, r.new_zeros(longest - r.shape[0], r.shape[1])]) for r in kept]
    return tuple(torch.stack(padded, dim=1))
