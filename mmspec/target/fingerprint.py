"""Whose hidden states these are: a name for a target's weights, and a text to try them on."""

import hashlib

import torch
from torch import nn
from transformers import PreTrainedModel

from mmspec.state import Prompt
from mmspec.target.target import Target

_VALUES = 64  # of each weight, evenly spread
_PROBE_TOKENS = 24


def weights_fingerprint(model: PreTrainedModel) -> str:
    """Of the names, the shapes and some values of all weights, adapters among them: the same in
    every process, and in float32 as in bfloat16, as which the values are read. Weights that lie
    elsewhere between forwards (offloaded), or in a format of their own, count by name alone:
    whether they are the ones is for `probe_state` to say."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        if not weight.is_meta and type(weight) is nn.Parameter:
            values = weight.detach().flatten()
            values = values[:: max(values.numel() // _VALUES, 1)][:_VALUES]
            digest.update(values.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def states_fingerprint(target: Target, *, tap: int) -> str:
    """Of the weights and the layer that hidden states come from."""
    return f"{weights_fingerprint(target.model)}/{tap}"


def tap_of(fingerprint: str) -> int:
    """The layer in a `states_fingerprint`. Raises ValueError for any other text."""
    return int(fingerprint.rpartition("/")[2])


def probe_state(target: Target, *, tap: int) -> list[float]:
    """The hidden state (hidden,) behind the last of some ordinary tokens, to 6 digits."""
    vocab_size = target.vocab_size
    low, high = vocab_size // 4, max(vocab_size * 3 // 4, vocab_size // 4 + 8)
    tokens = [low + 7919 * n % (high - low) for n in range(_PROBE_TOKENS)]
    cache = target.new_cache()
    row = cache.open(_PROBE_TOKENS)
    prefill = target.prefill(Prompt(torch.tensor(tokens)), cache, row, taps=(tap,))
    cache.release()
    return [float(f"{value:.6g}") for value in prefill.hidden[tap][-1].tolist()]
