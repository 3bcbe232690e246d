"""Reading a long prompt: ours in chunks, transformers' in one forward."""

from dataclasses import asdict

import torch
from transformers import PreTrainedModel

from mmspec.bench.interval import spread
from mmspec.gpu_check.clock import Clock
from mmspec.gpu_check.setting import Setting
from mmspec.state import Prompt
from mmspec.target import Target

_TOKENS, _CHUNK, _ROUNDS = 32_768, 4096, 7
_SMALL_TOKENS, _SMALL_CHUNK = 300, 160


def compared(target: Target, peer: PreTrainedModel, setting: Setting) -> dict[str, object]:
    """Milliseconds of both, and how much quicker ours is, in interleaved rounds."""
    tokens, chunk = (_SMALL_TOKENS, _SMALL_CHUNK) if setting.is_small else (_TOKENS, _CHUNK)
    prompt = Prompt(torch.randint(10, 200, (tokens,)))
    ids = prompt.token_ids.unsqueeze(0).to(setting.device)

    def ours() -> None:
        cache = target.new_cache()
        row = cache.open(tokens)
        for start in range(0, tokens, chunk):
            target.prefill(prompt, cache, row, start=start, stop=min(start + chunk, tokens))
        cache.release()

    def theirs() -> None:
        with torch.inference_mode():
            peer(input_ids=ids, use_cache=True, logits_to_keep=1)

    clock = Clock(setting.device, rounds=1 if setting.is_small else _ROUNDS, limit_s=20.0)
    samples = clock.samples_ms({"mmspec": ours, "transformers": theirs})
    pairs = zip(samples["transformers"], samples["mmspec"], strict=True)
    return {
        "tokens": tokens,
        "chunk": chunk,
        "ms": samples,
        "speed beside transformers": asdict(spread([other / own for other, own in pairs])),
    }
