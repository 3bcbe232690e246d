"""TopP: transformers' warper, which on a GPU with Triton finds the nucleus without a sort."""

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from mmspec.kernels import Kernels

_KERNELS = Kernels("mmspec.nucleus_kernels", "top-p")


class TopP(TopPLogitsWarper):
    """For scores on a GPU, and a draft's on the CPU, which are sorted. Keeps the tokens that
    transformers' keeps, up to the rounding of the sums at the border."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Tensor:
        kernels = _KERNELS.on(scores.device)
        if kernels is not None:
            with _KERNELS.or_else(scores.device):
                nucleus: Tensor = kernels.nucleus(scores.float(), self.top_p)
                return nucleus
        return super().__call__(input_ids, scores)


def for_device(processors: LogitsProcessorList, device: torch.device) -> LogitsProcessorList:
    """The same processors, quick ones in place of those that would sort the vocabulary there."""
    if _KERNELS.on(device) is None:
        return processors
    return LogitsProcessorList(map(_quick, processors))


def _quick(processor: LogitsProcessor) -> LogitsProcessor:
    """A TopP for transformers' own, where it asks for no more than the nucleus."""
    if type(processor) is not TopPLogitsWarper:
        return processor
    if processor.min_tokens_to_keep > 1 or processor.filter_value != -torch.inf:
        return processor
    return TopP(processor.top_p)
