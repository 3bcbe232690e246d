"""What a token's keys and values depend on beside the tokens before it: how prefixes are known."""

from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor

from mmspec.encoders.media import Media, token_inputs
from mmspec.state import Prompt


def prompt_keys(
    prompt: Prompt, media: Media, positions: Tensor, *, has_blocks: bool = False
) -> list[Hashable] | None:
    """A key a token of the prompt: its id; its position, where that is not just its index; the
    digest of its image or video, and which of its placeholders it is.

    `positions`: (1, seq), or (3, 1, seq) under M-RoPE. `has_blocks`: placeholders side by side see
    each other, whichever image they are of.
    None: an input marks text tokens in a way of its own, so that equal keys would prove nothing.
    """
    is_text = torch.ones(prompt.num_tokens, dtype=torch.bool)
    for span in prompt.media:
        is_text[span.start : span.stop] = False
    if any(bool(value[0].cpu()[is_text].any()) for value in token_inputs(prompt).values()):
        return None
    offsets = positions.reshape(-1, prompt.num_tokens).cpu() - torch.arange(prompt.num_tokens)
    keys = text_keys(prompt.token_ids.tolist(), zip(*offsets.tolist(), strict=True))
    for kind, items in media.items.items():
        spans = [span for span in prompt.media if span.kind == kind]
        places = [index for span in spans for index in range(span.start, span.stop)]
        for item in items:
            digest = item.digest
            for rank, index in enumerate(places[item.start : item.stop]):
                keys[index] = (keys[index], digest, rank)
    for span in prompt.media if has_blocks else ():  # its first token's stands for all of them
        keys[span.start] = tuple(keys[span.start : span.stop])
    return keys


def text_keys(tokens: Sequence[int], offsets: Iterable[tuple[int, ...]]) -> list[Hashable]:
    """Keys of text tokens. `offsets`: position less index, in each plane, of each token; all 0
    needs no mention."""
    pairs = zip(tokens, offsets, strict=False)
    return [(token, *offset) if any(offset) else token for token, offset in pairs]
