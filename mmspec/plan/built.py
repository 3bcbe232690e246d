"""A config.json's model, built without weights: what it multiplies by and what it keeps is asked of
it, in a forward of a few tokens on torch's meta device, where nothing is allocated or computed."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mmspec.errors import ConfigError

if TYPE_CHECKING:  # torch comes with it, which a known shape does not need
    from torch import nn
    from transformers.pytorch_utils import Conv1D

_TOKENS = 8  # read; whatever the text, a state has one size
_WINDOWED = ("sliding_attention", "hybrid_sliding", "chunked_attention")


@dataclass(frozen=True)
class BuiltModel:
    """A decoder's sizes; of a vision-language model its text tower's."""

    text: Any  # its PreTrainedConfig
    attending: int  # layers that look at keys
    keeping: int  # that keep keys and values of their own
    windowed: int  # that see a window
    kv_heads: int
    head_dim: int
    kv_values: float  # numbers that a token keeps in one layer, the mean of those that keep any
    weights: int  # of all matrices that every token is multiplied by, but for the head's
    expert_weights: int  # of all experts
    expert_share: float  # of them, that a token is multiplied by
    looked_up: int  # all other weights: embeddings, norms
    state_bytes: int  # of running states after one token, of all layers; the model in bfloat16


def built_model(config: Mapping[str, object]) -> BuiltModel:
    """Of a config.json's values. Raises ConfigError for a kind of model that is not decoded, and
    whatever transformers does where it cannot build or run it."""
    from torch import Tensor
    from transformers import DynamicCache

    own = _read(config)
    text = own.get_text_config(decoder=True)
    if own.is_encoder_decoder:
        raise ConfigError(
            f"{own.model_type} is an encoder-decoder model; expected one that decodes alone"
        )
    if not text.num_hidden_layers:
        raise ConfigError("its config says num_hidden_layers=0; expected 1 or more")
    model, cache, called = _without_weights(own, text), DynamicCache(config=text), _Called()
    called.count_in(model, cache)
    keeping = [one for one in cache.layers if isinstance(getattr(one, "keys", None), Tensor)]
    kept = [(one.keys.numel() + one.values.numel()) / one.keys.shape[-2] for one in keeping]
    states = [
        tensor
        for one in cache.layers
        for kind in ("conv_states", "recurrent_states")
        for tensor in getattr(one, kind, {}).values()
        if tensor is not None
    ]
    attending = len(kept) + (getattr(text, "num_kv_shared_layers", None) or 0)
    head = text.vocab_size * text.hidden_size if getattr(own, "tie_word_embeddings", False) else 0
    stored = sum(weight.numel() for weight in model.parameters())
    return BuiltModel(
        text,
        attending,
        len(kept),
        min(_num_windowed(text), attending),
        keeping[0].keys.shape[1] if keeping else 1,
        keeping[0].keys.shape[-1] if keeping else 1,
        sum(kept) / max(len(kept), 1),
        called.weights,
        called.expert_weights,
        called.used_weights / called.expert_weights if called.expert_weights else 1.0,
        stored - called.weights - called.expert_weights - head,
        sum(tensor.nbytes for tensor in states),
    )


def _read(config: Mapping[str, object]) -> Any:
    """As a PreTrainedConfig."""
    import transformers

    kind = config.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        raise ConfigError(
            f"its config says model_type={kind!r}, which transformers {transformers.__version__} "
            "does not know; expected a kind that it builds (a model's own code is not run)"
        )
    with TemporaryDirectory() as folder:  # a file may write numbers that JSON does not have
        Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)


def _without_weights(own: Any, text: Any) -> "nn.Module":
    """The decoder, on the meta device; its text config is changed where that runs no model."""
    import torch
    from transformers import MODEL_MAPPING, AutoModel, AutoModelForImageTextToText

    text.pad_token_id = None  # GPT-2 and others look for it in the text
    if hasattr(text, "activation_sparsity_pattern"):  # Gemma 3n finds a threshold by values
        text.activation_sparsity_pattern = [0.0] * text.num_hidden_layers
    is_known = type(text) in MODEL_MAPPING  # Llama 3.2 Vision's is not by itself
    maker = AutoModel if is_known else AutoModelForImageTextToText
    with torch.device("meta"):
        model = maker.from_config(
            text if is_known else own,
            dtype=torch.bfloat16,
            attn_implementation="eager",  # what the config asks for may not be installed
            experts_implementation="batched_mm",  # others look at what was computed
        )
    decoder: nn.Module = model.get_decoder().eval()
    return decoder


class _Called:
    """What the modules that a forward calls hold."""

    def __init__(self) -> None:
        self.weights = self.expert_weights = 0
        self.used_weights = 0.0

    def count_in(self, model: "nn.Module", cache: object) -> None:
        """What a forward of a few tokens calls, which fills the cache."""
        import torch
        from torch import nn
        from transformers.pytorch_utils import Conv1D  # GPT-2's matrices

        for module in model.modules():
            if isinstance(module, nn.Linear | Conv1D):
                module.register_forward_hook(self.count_linear)
            elif _expert_weights(module):
                module.register_forward_pre_hook(self.count_experts, with_kwargs=True)
        takes = inspect.signature(model.forward).parameters
        keyword = "cache_params" if "cache_params" in takes else "past_key_values"
        with torch.device("meta"), torch.no_grad():
            ids = torch.zeros(1, _TOKENS, dtype=torch.long)
            model(input_ids=ids, use_cache=True, **{keyword: cache})

    def count_linear(self, module: "nn.Linear | Conv1D", *unused: object) -> None:
        self.weights += module.weight.numel()

    def count_experts(
        self, module: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Which of them are a token's is given beside the hidden states; without, all are."""
        own = _expert_weights(module)
        given = {
            **dict(zip(inspect.signature(module.forward).parameters, args, strict=False)),
            **kwargs,
        }
        chosen = [value for name, value in given.items() if "ind" in name]  # top_k_index and such
        num_experts = next(w.shape[0] for w in module.parameters(recurse=False) if w.ndim == 3)
        share = chosen[0].shape[-1] / num_experts if chosen else 1.0
        self.expert_weights += own
        self.used_weights += own * share


def _expert_weights(module: "nn.Module") -> int:
    """Those of several experts in one tensor; a convolution's are not."""
    weights = [w for w in module.parameters(recurse=False) if w.ndim == 3]
    return 0 if hasattr(module, "kernel_size") else sum(w.numel() for w in weights)


def _num_windowed(text: Any) -> int:
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        return sum(kind in _WINDOWED for kind in kinds)
    window = getattr(text, "use_sliding_window", True) and getattr(text, "sliding_window", None)
    return text.num_hidden_layers if window else 0
