"""Two vocabularies whose ids mean the same, as far as both have them."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_SAME_SHARE = 0.9  # of the smaller tokenizer's ids: fewer in common, and it is another tokenizer


@dataclass(frozen=True)
class SharedVocabulary:
    """The ids below `size`; models of one family pad their vocabularies to different sizes."""

    size: int  # ids that both models have
    readable: int  # ids that the draft model has an embedding for
    foreign: frozenset[int]  # ids below `readable` that mean something else to the draft model
    stand_in: int  # what it reads in place of an id that it does not know
    unshared: Tensor | None = None  # (size,) bool: ids that one model alone knows; None: no id is
    _placed: dict[torch.device, Tensor] = field(default_factory=dict)  # `unshared` by device

    def read(self, ids: Iterable[int]) -> list[int]:
        """The target's ids as the draft model may read them."""
        return [
            token if token < self.readable and token not in self.foreign else self.stand_in
            for token in ids
        ]

    def crop(self, logits: Tensor) -> Tensor:
        """(nodes, draft vocab) -> (nodes, size); what only one model knows is never proposed."""
        cropped, device = logits[:, : self.size], logits.device
        if self.unshared is None:
            return cropped
        if device not in self._placed:  # copied there once: each copy would wait for the device
            self._placed[device] = self.unshared.to(device)
        return cropped.masked_fill(self._placed[device], -torch.inf)


def shared_vocabulary(
    target: PreTrainedTokenizerBase | None,
    draft: PreTrainedTokenizerBase | None,
    *,
    target_size: int,
    draft_size: int,
    readable: int,
) -> SharedVocabulary | None:
    """What both tokenizers have in common, by the text of each id and not by the models' sizes;
    None where they are different tokenizers. One that is not there is taken to be the other."""
    size = min(target_size, draft_size)
    if target is None or draft is None:
        return SharedVocabulary(size, readable, frozenset(), 0)
    names, draft_names = (
        {token: text for text, token in tokenizer.get_vocab().items()}
        for tokenizer in (target, draft)
    )
    if names == draft_names:
        return SharedVocabulary(size, readable, frozenset(), 0)
    common = names.keys() & draft_names.keys()
    same = {token for token in common if names[token] == draft_names[token]}
    if len(same) < _SAME_SHARE * min(len(names), len(draft_names)):
        return None
    unshared = torch.ones(size, dtype=torch.bool)
    unshared[[token for token in same if token < size]] = False
    foreign = frozenset(common - same)
    known = (draft.unk_token_id, draft.pad_token_id, draft.eos_token_id)
    stand_in = next((token for token in known if token is not None), 0)
    return SharedVocabulary(size, readable, foreign, stand_in, unshared)
