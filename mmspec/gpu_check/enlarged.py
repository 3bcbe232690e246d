"""The bundled model at Llama-3-8B's shape: what it says, and how much is accepted, is a trained
model's; what a step costs is an 8B's."""

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from mmspec.gpu_check.models import small
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting
from mmspec.plan.shape import SHAPES, ModelShape
from mmspec.target.load import load_model, resolve_path
from mmspec.training import enlarge

MODEL = "tiny-vlm"
_MOST_ERROR = 0.05  # of the logits' standard deviation, in float32
_SMALL = {"layers": 5, "hidden": 256, "heads": 8, "kv_heads": 2, "head_dim": 64,
          "intermediate": 512, "vocab": 300}  # fmt: skip


def enlarged_shape(setting: Setting) -> ModelShape:
    shape = SHAPES["llama-3-8b"]
    if setting.is_small:
        return replace(small(shape), **_SMALL)  # type: ignore[arg-type]
    return shape


def enlarged_model(setting: Setting, recorder: Recorder) -> PreTrainedModel:
    """In the setting's dtype, on its device. Its logits are compared with the small one's."""
    trained = load_model(resolve_path(MODEL), dtype="float32", device=str(setting.device))
    shape = enlarged_shape(setting)
    made = enlarge(
        trained,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocab,
        dtype=setting.dtype,
    )
    recorder.found("enlarged", _agreement(trained, made, setting))
    found = recorder.result.found["enlarged"]
    assert isinstance(found, dict)
    bound = _MOST_ERROR if setting.dtype == torch.float32 else 4 * found["own_rounding"] + 0.1
    recorder.check(
        found["error"] <= bound,
        f"enlarged model: its logits are off by {found['error']:.3g} standard deviations, more "
        f"than {bound:.3g}",
    )
    return made


@torch.no_grad()
def _agreement(
    trained: PreTrainedModel, made: PreTrainedModel, setting: Setting
) -> dict[str, float]:
    """Errors of logits in their standard deviations; the small model's own in that dtype, too."""
    ids = torch.tensor([[1, *b"Repeat: the harbour office opens at seven on weekdays.", 5]])
    ids = ids.to(setting.device) + 8 * (ids > 7).to(setting.device)
    expected = trained(input_ids=ids).logits[0]
    vocab, spread = expected.shape[-1], expected.std()
    got = made(input_ids=ids).logits[0, :, :vocab].float()
    trained.to(setting.dtype)
    own = trained(input_ids=ids).logits[0].float()
    return {
        "error": float((got - expected).abs().max() / spread),
        "own_rounding": float((own - expected).abs().max() / spread),
        "same_best_share": float((got.argmax(-1) == expected.argmax(-1)).float().mean()),
    }
