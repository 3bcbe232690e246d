"""transformers' own generate, with its best settings, on an unmodified model."""

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from mmspec.gpu_check.clock import Clock
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting

_PROMPT, _FEW, _MANY = 4096, 8, 40
_COMPILED_S = 150.0  # a static cache is compiled for: not begun with less time left
_WAYS: Mapping[str, Mapping[str, object]] = {
    "eager, dynamic cache": {},
    "compiled, static cache": {"cache_implementation": "static"},
}


def generate_ms(model: PreTrainedModel, setting: Setting, recorder: Recorder) -> dict[str, float]:
    """Milliseconds a token: of many tokens less those of few, so that the prefill is left out."""
    prompt, few, many = (32, 2, 6) if setting.is_small else (_PROMPT, _FEW, _MANY)
    ids = torch.randint(10, 200, (1, prompt), device=setting.device)
    clock = Clock(setting.device, rounds=3, limit_s=10.0)
    found: dict[str, float] = {}
    for way, options in _WAYS.items():
        if options and setting.is_small:
            continue
        if options and setting.left_s < _COMPILED_S:
            recorder.missing(f"transformers, {way}: no time left to compile")
            continue

        def generate(tokens: int, options: Mapping[str, object] = options) -> object:
            return model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                **options,
            )

        try:
            # Many first: a static cache of that size serves both, and is compiled for once.
            times = clock.medians_ms({"many": lambda: generate(many), "few": lambda: generate(few)})
        except Exception as error:  # a peer's limit
            recorder.missing(f"transformers, {way}: {type(error).__name__}: {error}")
            continue
        found[way] = (times["many"] - times["few"]) / (many - few)
    return found
