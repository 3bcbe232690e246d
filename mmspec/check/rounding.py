"""How far rounding alone moves a model's logits, measured without any of mmspec's forwards.

transformers' own generate decodes the same known text twice, alone and as one of several equal
rows. The two are the same mathematics; they differ because a matrix product over several rows adds
up in another order, as a score of several nodes does.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from mmspec.state import Prompt
from mmspec.target.native import native_inputs

_ROWS, _LONG_ROWS = 8, 2  # the second where every row of a long prompt costs memory
_LONG_PROMPT = 1024  # tokens
_SAFETY = 3.0  # a tree is another shape than several rows, its places are other ones
_LEAST_ULPS = 4.0  # of the largest logit: where both forwards happen to round alike
_LONGEST = 48  # tokens that are decoded again


def rounding_bound(model: PreTrainedModel, prompt: Prompt, tokens: Sequence[int]) -> float:
    """The largest difference of a logit that rounding explains, in logits.

    `tokens` (generated,) are what the model said after the prompt. 3 times the largest difference
    that was measured, and at least 4 units in the last place of the largest logit.
    """
    kept = tuple(tokens[:_LONGEST])
    several = _ROWS if prompt.num_tokens <= _LONG_PROMPT else _LONG_ROWS
    alone, among = (_native_logits(model, prompt, kept, rows) for rows in (1, several))
    differences = (alone - among).abs()
    largest = float(differences[differences.isfinite()].max())
    magnitude = float(alone[alone.isfinite()].abs().max())
    return max(_SAFETY * largest, _LEAST_ULPS * torch.finfo(model.dtype).eps * magnitude)


def _native_logits(
    model: PreTrainedModel, prompt: Prompt, tokens: Sequence[int], rows: int
) -> Tensor:
    """(generated, vocab) float64 on the CPU: the raw logits of the first of `rows` equal rows."""
    output = model.generate(
        **native_inputs(model, prompt),
        do_sample=True,  # of the one token that is left: only sampling takes several rows a prompt
        top_k=0,
        top_p=1.0,
        num_return_sequences=rows,
        max_new_tokens=len(tokens),
        logits_processor=LogitsProcessorList([_Forced(prompt.num_tokens, tokens)]),
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack([step[0] for step in output.logits]).cpu().double()


class _Forced(LogitsProcessor):
    """Leaves one token to choose: the known one."""

    def __init__(self, prompt_length: int, tokens: Sequence[int]) -> None:
        self._prompt_length = prompt_length
        self._tokens = tuple(tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self._tokens[input_ids.shape[1] - self._prompt_length]] = 0.0
        return forced
