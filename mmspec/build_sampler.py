"""A request's parameters -> its Sampler, with the processors that transformers itself builds."""

from typing import Protocol, runtime_checkable

from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from mmspec import nucleus
from mmspec.logprobs import ScoreRecorder
from mmspec.params import SamplingParams
from mmspec.penalties import GeneratedTokenPenalty
from mmspec.sampling import Sampler


@runtime_checkable
class ProcessorOfRequests(Protocol):
    """A logits processor that makes one for each request, so that it may be given to many: the rows
    of a batch, the turns of a chat."""

    def for_request(self, prompt_length: int) -> LogitsProcessor:
        """For a request whose prompt has so many tokens."""


def build_sampler(
    model: PreTrainedModel,
    config: GenerationConfig,
    params: SamplingParams,
    prompt_ids: Tensor,
    *,
    seed: int,
    index: int = 0,
    on_device: bool | None = None,
    is_bitwise: bool = False,
) -> Sampler:
    """The sampler of a request's first sample; `config` is its merged generation_config, `index`
    its place in the call, `prompt_ids` (seq,) lie where the logits will.

    transformers itself builds the processors and warpers, in its own order; ours and the user's
    come where transformers puts custom ones, before the warpers.
    """
    device = prompt_ids.device
    length = prompt_ids.shape[0]
    custom = LogitsProcessorList(
        p.for_request(length) if isinstance(p, ProcessorOfRequests) else p
        for p in params.logits_processors
    )
    if params.presence_penalty or params.frequency_penalty:
        penalty = GeneratedTokenPenalty(
            params.presence_penalty, params.frequency_penalty, prompt_ids.shape[0]
        )
        custom.insert(0, penalty)
    allowed = params.prefix_allowed_tokens_fn
    model._prepare_special_tokens(config, device=device, batch_size=1)
    processors = model._get_logits_processor(
        config,
        input_ids_seq_length=prompt_ids.shape[0],
        encoder_input_ids=prompt_ids.unsqueeze(0),  # which a decoder's own prompt is
        logits_processor=custom,
        prefix_allowed_tokens_fn=allowed and (lambda _, ids: allowed(index, ids)),
        device=device,
    )
    recorder = ScoreRecorder(
        top=params.logprobs,
        of=params.logprobs_of,
        prompt_top=params.prompt_logprobs,
        keeps_scores=params.output_scores,
        keeps_logits=params.output_logits,
    )
    return Sampler(
        nucleus.for_device(processors, device),
        prompt_ids,
        is_greedy=not config.do_sample,
        seed=seed,
        max_new_tokens=config.max_new_tokens,
        sample=params.sample,
        recorder=recorder,
        on_device=on_device,
        is_bitwise=is_bitwise,
    )
