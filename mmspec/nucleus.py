"""TopP: transformers' warper, which on a GPU with Triton finds the nucleus without a sort."""

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TopPLogitsWarper


class TopP(TopPLogitsWarper):
    """For scores on a GPU, and a draft's on the CPU, which are sorted. Keeps the tokens that
    transformers' keeps, up to the rounding of the sums at the border."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Tensor:
        if not scores.is_cuda:
            return super().__call__(input_ids, scores)
        kernels = _kernels()
        assert kernels is not None, "it is made where there are kernels"
        nucleus: Tensor = kernels.nucleus(scores.float(), self.top_p)
        return nucleus


def for_device(processors: LogitsProcessorList, device: torch.device) -> LogitsProcessorList:
    """The same processors, quick ones in place of those that would sort the vocabulary there."""
    if device.type != "cuda" or _kernels() is None:
        return processors
    return LogitsProcessorList(map(_quick, processors))


def _quick(processor: LogitsProcessor) -> LogitsProcessor:
    """A TopP for transformers' own, where it asks for no more than the nucleus."""
    if type(processor) is not TopPLogitsWarper:
        return processor
    if processor.min_tokens_to_keep > 1 or processor.filter_value != -torch.inf:
        return processor
    return TopP(processor.top_p)


@cache
def _kernels() -> ModuleType | None:
    try:
        return import_module("mmspec.nucleus_kernels")
    except ImportError:  # no Triton
        return None
