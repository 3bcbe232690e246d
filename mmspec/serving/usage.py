"""What an answer took, in OpenAI's words."""

from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

from mmspec.beginnings import num_shared
from mmspec.integrations.answer import usage as answer_usage
from mmspec.requests import Result

_MANY = 2**20  # pairs of tokens from which on frequent ones are no beginnings of a match


def usage(
    results: Sequence[Result],
    predicted: Sequence[Sequence[int]] = (),
    num_thought: int = 0,
) -> dict[str, object]:
    """Of a call's prompts. `predicted` are the tokens of each one's predicted answer, `num_thought`
    those of all reasoning."""
    counts = Counter[str]()
    for result in results:
        counts.update(answer_usage(result))
    accepted = rejected = 0
    for result, tokens in zip(results, predicted, strict=False):
        for sample in result.samples if tokens else ():
            found = num_found(tokens, sample.tokens)
            accepted, rejected = accepted + found, rejected + len(tokens) - found
    return {
        **counts,
        "prompt_tokens_details": {
            "cached_tokens": sum(result.stats.reused_tokens for result in results)
        },
        "completion_tokens_details": {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": rejected,
            "reasoning_tokens": num_thought,
        },
    }


def num_found(predicted: Sequence[int], tokens: Sequence[int]) -> int:
    """How many of the predicted tokens stand in the answer, in their order: a matter of the texts
    alone, whoever drafted them."""
    start = num_shared(predicted, tokens)
    one, other = predicted[start:], tokens[start:]
    end = num_shared(one[::-1], other[::-1])
    one, other = one[: len(one) - end], other[: len(other) - end]
    is_long = len(one) * len(other) > _MANY
    blocks = SequenceMatcher(None, one, other, autojunk=is_long).get_matching_blocks()
    return start + end + sum(block.size for block in blocks)
