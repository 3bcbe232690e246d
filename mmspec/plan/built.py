"""A config.json's model, built without weights: what it multiplies by and what it keeps is seen in
a forward of a few tokens, in which weights are zeros that take no memory, and their products are
noise, by which routers choose experts evenly."""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, DynamicCache, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from mmspec.errors import ConfigError, ModelError
from mmspec.plan.shape import ModelShape
from mmspec.target.bundles import writing_config
from mmspec.target.families import refuse_unsupported, refuse_what_it_asks_for
from mmspec.target.load import auto_class
from mmspec.target.stateful import cache_keyword, state_kinds

_TOKENS = 8  # read; whatever the text, a state has one size
_MTP = ("num_mtp_layers", "num_nextn_predict_layers", "mtp_num_hidden_layers")
_WINDOWED = ("sliding_attention", "hybrid_sliding", "chunked_attention")


def built_shape(config: Mapping[str, object], name: str) -> ModelShape:
    """Of a config.json's values. Raises ConfigError for a kind of model that is not decoded, and
    whatever transformers does where it cannot build or run it."""
    own = writing_config(_read(config))
    text = own.get_text_config(decoder=True)
    if own.is_encoder_decoder:
        raise ConfigError(f"{own.model_type} is an encoder-decoder model; expected a decoder alone")
    if not text.num_hidden_layers:
        raise ConfigError("its config says num_hidden_layers=0; expected 1 or more")
    text.tie_word_embeddings = getattr(own, "tie_word_embeddings", False)  # a whole's own word
    auto = auto_class(own)
    if type(own) not in auto._model_mapping:
        raise ConfigError(
            f"{auto.__name__} of transformers {transformers.__version__} loads no "
            f"{own.model_type}; expected a kind of model that writes text"
        )
    model = _without_weights(own, text)
    try:
        refuse_what_it_asks_for(auto._model_mapping[type(own)])
        refuse_unsupported(model)
    except ModelError as error:
        raise ConfigError(str(error)) from None
    cache, products = DynamicCache(config=text), _Products(model)
    with torch.no_grad(), products:
        ids = torch.zeros(1, _TOKENS, dtype=torch.long)
        model(input_ids=ids, use_cache=True, **{cache_keyword(model): cache})
    keeping = [one for one in cache.layers if isinstance(getattr(one, "keys", None), Tensor)]
    kept = [(one.keys.numel() + one.values.numel()) / one.keys.shape[-2] for one in keeping]
    states = [
        tensor
        for one in cache.layers
        for kind in ("conv_states", "recurrent_states")
        for tensor in getattr(one, kind, {}).values()
        if tensor is not None
    ]
    if state_kinds(text) and not states:
        raise ConfigError(f"{text.model_type} keeps its running states outside of its cache")
    writing = model if model.config is text else model.get_decoder()  # no towers
    stored = sum(weight.numel() for weight in {*writing.parameters(), *products.values})
    experts = [weight for weight, values in products.values.items() if values < weight.numel()]
    expert_weights = sum(weight.numel() for weight in experts)
    used = sum(products.values[weight] for weight in experts)
    weights = sum(products.values.values()) - used
    shared = getattr(text, "num_kv_shared_layers", None) or 0
    attending = len(kept) + shared
    window = getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None)
    return ModelShape(
        name,
        text.num_hidden_layers,
        text.hidden_size,
        _heads(text),
        keeping[0].keys.shape[1] if keeping else 1,
        keeping[0].keys.shape[-1] if keeping else 1,
        0,  # counted
        text.vocab_size,
        sliding_layers=min(_num_windowed(text), attending),
        window=window or 0,
        counted_weights=weights,
        counted_kv=sum(kept) / max(len(kept), 1),
        keyless_layers=text.num_hidden_layers - attending,
        shared_layers=shared,
        state_bytes=sum(tensor.nbytes for tensor in states),  # the model in bfloat16
        looked_up=stored - weights - expert_weights,
        expert_weights=expert_weights,
        expert_share=used / expert_weights if experts else 1.0,
        max_context=getattr(text, "max_position_embeddings", None) or 0,
        head_width=model.get_output_embeddings().weight.shape[-1],
        mtp_layers=next((found for key in _MTP if (found := getattr(text, key, None))), 0),
    )


def _read(config: Mapping[str, object]) -> Any:
    """As a PreTrainedConfig."""
    kind = config.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        raise ConfigError(
            f"its config says model_type={kind!r}, which transformers {transformers.__version__} "
            "does not know; expected a kind that it builds (a model's own code is not run)"
        )
    with TemporaryDirectory() as folder:  # a file may write numbers that JSON does not have
        Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def _without_weights(own: Any, text: Any) -> PreTrainedModel:
    """The model of the text config, or the whole where transformers has none, all of zeros."""
    config = text if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING else own
    with torch.device("meta"):
        model: PreTrainedModel = auto_class(config).from_config(
            config,
            dtype=torch.bfloat16,
            attn_implementation="eager",  # what the config asks for may not be installed
            experts_implementation="eager",  # one by one: others copy weights
        )
    zeros: dict[Tensor, Tensor] = {}  # of each, where modules share it
    for module in model.modules():
        for own_tensors in (module._parameters, module._buffers):
            for name, tensor in own_tensors.items():
                if tensor is not None and tensor.is_meta:
                    zero = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
                    if isinstance(tensor, nn.Parameter):
                        zero = nn.Parameter(zero, requires_grad=False)
                    own_tensors[name] = zeros.setdefault(tensor, zero)
    return model.eval()


class _Products(TorchDispatchMode):
    """Sees what weights multiply, and gives noise for it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.values: dict[nn.Parameter, float] = defaultdict(float)  # multiplied with each token
        self._owners = {_storage(weight): weight for weight in model.parameters()}
        self._copies: list[Tensor] = []
        self._noise = torch.Generator().manual_seed(0)

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            left, right = args[-2:]
            for weight, tokens in ((right, left.shape[-2]), (left, right.shape[-1])):
                owner = self._owners.get(_storage(weight))
                if owner is not None:
                    self.values[owner] += weight.numel() * tokens / _TOKENS
                    shape = (*left.shape[:-1], right.shape[-1])
                    return torch.randn(shape, generator=self._noise, dtype=left.dtype)
        elif name in ("_to_copy", "clone") and _storage(args[0]) in self._owners:
            copy = torch.zeros((), dtype=kwargs.get("dtype") or args[0].dtype)
            self._owners[_storage(copy)] = self._owners[_storage(args[0])]
            self._copies.append(copy)  # its storage stays its own
            return copy.expand(args[0].shape)
        return func(*args, **kwargs)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _num_windowed(text: Any) -> int:
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        return sum(kind in _WINDOWED for kind in kinds)
    window = getattr(text, "use_sliding_window", True) and getattr(text, "sliding_window", None)
    return text.num_hidden_layers if window else 0


def _heads(text: Any) -> int:
    layers = getattr(text, "per_layer_config", None) or [text]
    return round(
        sum(getattr(one, "num_attention_heads", None) or 0 for one in layers) / len(layers)
    )
