"""A larger model says what the small one says, whatever is enlarged."""

from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import mmspec
from mmspec.check.prompts import picture
from mmspec.errors import ConfigError, ModelError
from mmspec.target.load import load_model, load_processor, resolve_path
from mmspec.training import enlarge
from mmspec.training.sizes import Sizes, places

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 4096,
}
ALL: dict[str, int] = {
    "hidden_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 20,
    "intermediate_size": 100,
}
LARGER = {
    **{name: {name: size} for name, size in ALL.items() if "heads" not in name},
    "heads": {"num_attention_heads": 12, "num_key_value_heads": 4},
    "no grouping": {"num_attention_heads": 8, "num_key_value_heads": 8},
    "all": ALL,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def random_model(kind: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(3)
    shape = {**SMALL, "initializer_range": 0.2, **changes}
    made: PreTrainedModel
    if kind == "llama":
        made = LlamaForCausalLM(LlamaConfig(**shape, attention_bias=True, mlp_bias=True))
    elif kind == "mistral":
        made = MistralForCausalLM(MistralConfig(**shape, sliding_window=16))
    else:
        made = Qwen2ForCausalLM(Qwen2Config(**shape))
    for name, parameter in made.named_parameters():
        if "bias" in name or "norm" in name:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return made.eval()


def precise_norms(model: PreTrainedModel) -> None:
    """transformers computes RMSNorm in float32 whatever the model is in."""

    def forward(norm: Any, states: Tensor) -> Tensor:
        mean = states.pow(2).mean(-1, keepdim=True)
        return norm.weight * (states * torch.rsqrt(mean + norm.variance_epsilon))

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = forward.__get__(module)


def logits(model: PreTrainedModel, ids: Tensor, **inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids.to(model.device), **inputs).logits


@pytest.mark.parametrize("change", LARGER)
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_logits_are_equal(kind: str, change: str) -> None:
    small = random_model(kind).double()
    large = enlarge(small, **LARGER[change])
    assert Sizes.of(large.config) != Sizes.of(small.config)
    ids = torch.randint(0, 96, (2, 40))
    native = logits(small, ids)
    assert (logits(large, ids) - native).abs().max() < 1e-4 * native.std()
    for model in (small, large):
        precise_norms(model)
    exact = logits(small, ids)
    assert (logits(large, ids) - exact).abs().max() < 1e-10 * exact.std()


@pytest.mark.parametrize("change", LARGER)
def test_every_number_that_is_added_is_left_unread_or_multiplied_by_zero(change: str) -> None:
    """Drawn from another seed, the unread numbers are others and the logits the same bits."""
    small = random_model("llama").double()
    first, second = (enlarge(small, **LARGER[change], seed=seed) for seed in (1, 2))
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    ids = torch.randint(0, 96, (1, 30))
    assert torch.equal(logits(first, ids), logits(second, ids))


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_in_low_precision_they_differ_by_rounding(dtype: torch.dtype, bound: float) -> None:
    small = random_model("llama")
    ids = torch.randint(0, 96, (2, 40))
    expected = logits(small, ids)
    large = enlarge(small, **ALL, dtype=dtype)
    assert large.dtype == dtype
    error = (logits(large, ids).float() - expected).abs().max() / expected.std()
    own = (logits(small.to(dtype), ids).float() - expected).abs().max() / expected.std()
    assert error < max(bound, 3 * own), (error, own)


def test_scaled_rotary_frequencies_stay(tmp_path: Any) -> None:
    """Beyond the trained context too; and a saved model has them from its configuration alone."""
    small = random_model("llama", rope_parameters=LLAMA3).double()
    large = enlarge(small, head_dim=32)
    ids = torch.randint(0, 96, (1, 300))
    expected = logits(small, ids)
    assert (logits(large, ids) - expected).abs().max() < 1e-5 * expected.std()
    large.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert (logits(again, ids) - expected).abs().max() < 1e-3 * expected.std()


def test_a_larger_vocabulary_repeats_its_first_token() -> None:
    small = random_model("qwen2").double()
    large = enlarge(small, vocab_size=130)
    ids = torch.randint(1, 96, (1, 20))
    expected, got = logits(small, ids), logits(large, ids)
    torch.testing.assert_close(got[..., :96], expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(got[..., 96:], expected[..., :1].expand(-1, -1, 34))


def test_the_model_itself_is_not_changed() -> None:
    small = random_model("llama")
    before = {name: value.clone() for name, value in small.state_dict().items()}
    config = small.config.to_dict()
    enlarge(small, **ALL)
    assert small.config.to_dict() == config
    assert all(torch.equal(before[name], value) for name, value in small.state_dict().items())
    assert torch.get_default_dtype() == torch.float32


def test_the_bundled_model_reads_the_same_in_a_larger_one() -> None:
    """Text and picture, decoded by the engine: tied embeddings, a projector, real weights."""
    small = load_model(resolve_path("tiny-vlm"), dtype="float32")
    large = enlarge(small, hidden_size=320, num_hidden_layers=5, num_attention_heads=8, head_dim=80)
    processor = load_processor(resolve_path("tiny-vlm"))
    asked = [("Repeat: seven small boats", ()), ("Describe the picture.", picture(1))]
    texts = []
    for model in (small, large):
        engine = mmspec.load(model, processor)
        texts.append(
            [
                engine.generate(text, images=images, temperature=0.0, max_new_tokens=24).tokens
                for text, images in asked
            ]
        )
    assert texts[0] == texts[1]
    assert large.lm_head.weight is large.get_input_embeddings().weight


def test_every_part_of_the_bundled_model_is_made_in_the_dtype() -> None:
    """Parts of a model are made from configurations of their own, which name another one."""
    small = load_model(resolve_path("tiny-vlm"), dtype="float32")
    large = enlarge(small, hidden_size=320, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in large.parameters()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in small.parameters()} == {torch.float32}


def test_grouped_heads_stay_with_their_keys() -> None:
    small, large = Sizes(8, 1, 4, 2, 4, 8, 8), Sizes(8, 1, 4, 4, 4, 8, 8)
    where = places(small, large)
    assert where.query_heads.tolist() == [0, 1, 2, 3]  # two heads a key before: now a copy each
    assert where.keys_from.view(4, 4)[:, 0].tolist() == [0, 0, 4, 4]


def test_what_does_not_fit_is_refused() -> None:
    small = random_model("llama")
    with pytest.raises(ConfigError, match="hidden_size=32: expected at least the model's own 48"):
        enlarge(small, hidden_size=32)
    with pytest.raises(ConfigError, match="expected 4 or more"):
        places(Sizes(8, 1, 6, 2, 4, 8, 8), Sizes(8, 1, 6, 3, 4, 8, 8))
    with pytest.raises(ModelError, match="Gemma3"):
        enlarge(FAMILIES["gemma3_text"].build(torch.float32), num_hidden_layers=4)
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    with pytest.raises(ModelError, match="leave it at 12"):
        enlarge(random_model("llama", rope_parameters=yarn), head_dim=32)


@pytest.mark.gpu
def test_it_is_made_on_the_device() -> None:
    small = random_model("llama")
    large = enlarge(small, **ALL, device="cuda", dtype=torch.bfloat16)
    assert {p.device.type for p in large.parameters()} == {"cuda"}
    ids = torch.randint(0, 96, (1, 20))
    expected = logits(small, ids)
    assert (logits(large, ids).float().cpu() - expected).abs().max() < 0.2 * expected.std()
