"""ModelShape: what a decoder's cost depends on."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmspec.errors import ConfigError
from mmspec.plan.states import StatefulShape, may_keep_states, stateful_shape


@dataclass(frozen=True)
class ModelShape:
    """A dense decoder; of a vision-language model its text tower."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    sliding_layers: int = 0  # that see `window` tokens; the others see all
    window: int = 0
    counted_weights: int | None = None  # linear layers and head, where they were counted otherwise
    keyless_layers: int = 0  # that keep a running state, and no keys
    state_bytes: int = 0  # of all running states of one row, or of a drafted node
    embeddings: int = 1  # matrices beside the head's; 0: the head's is the embedding, too

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads

    @property
    def head_weights(self) -> int:
        return self.vocab * self.hidden

    @property
    def layer_weights(self) -> float:
        """Weights of one layer's matrices."""
        if self.counted_weights is not None:
            return (self.counted_weights - self.head_weights) / self.layers
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def kv_values(self) -> int:
        """Numbers that one token keeps in one layer."""
        return 2 * self.kv_heads * self.head_dim

    def seen_layers(self, context: int) -> float:
        """Layers that attend, each by the share of `context` tokens that it sees."""
        share = min(self.window / context, 1.0) if self.sliding_layers else 1.0
        return self.layers - self.keyless_layers - self.sliding_layers * (1.0 - share)


def _llama(name: str, *sizes: int, embeddings: int = 1) -> ModelShape:
    layers, hidden, heads, kv_heads, intermediate, vocab = sizes
    head_dim = hidden // heads
    return ModelShape(
        name, layers, hidden, heads, kv_heads, head_dim, intermediate, vocab, embeddings=embeddings
    )


_KNOWN = (
    _llama("llama-2-7b", 32, 4096, 32, 32, 11_008, 32_000),
    _llama("llama-3-8b", 32, 4096, 32, 8, 14_336, 128_256),
    _llama("llama-3-70b", 80, 8192, 64, 8, 28_672, 128_256),
    _llama("llama-3.2-1b", 16, 2048, 32, 8, 8192, 128_256, embeddings=0),
    _llama("llama-3.2-3b", 28, 3072, 24, 8, 8192, 128_256, embeddings=0),
    _llama("mistral-7b", 32, 4096, 32, 8, 14_336, 32_000),
    _llama("qwen2.5-0.5b", 24, 896, 14, 2, 4864, 151_936, embeddings=0),
    _llama("qwen2.5-1.5b", 28, 1536, 12, 2, 8960, 151_936, embeddings=0),
    _llama("qwen2.5-7b", 28, 3584, 28, 4, 18_944, 152_064),
    _llama("qwen2.5-32b", 64, 5120, 40, 8, 27_648, 152_064),
    _llama("qwen3-8b", 36, 4096, 32, 8, 12_288, 151_936),
    _llama("smollm2-135m", 30, 576, 9, 3, 1536, 49_152, embeddings=0),
    _llama("random-llama", 8, 512, 8, 2, 1376, 4096),  # of scripts/bench_score.py
)
SHAPES: dict[str, ModelShape] = {shape.name: shape for shape in _KNOWN}


def find_shape(name_or_path: str | Path) -> ModelShape:
    """A known shape by name, or that of a `config.json`, by its path or its folder's.

    Raises ConfigError for a name that is not known, a file that is no config, and a model whose
    cost this cannot tell (mixtures of experts, layers of a kind that is not known).
    """
    known = SHAPES.get(str(name_or_path).lower())
    if known is not None:
        return known
    path = Path(name_or_path)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(
            f"model {str(name_or_path)!r}: expected a folder with a config.json, such a file, or "
            f"one of {', '.join(SHAPES)}"
        )
    name = path.parent.name if path.name == "config.json" else path.stem
    return shape_of(read_object(path), name or "model")


def read_object(path: Path) -> Mapping[str, object]:
    """What a JSON file holds. Raises ConfigError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: is no JSON file: {error}") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: got {type(values).__name__}, expected an object")
    return values


def shape_of(config: Mapping[str, object], name: str) -> ModelShape:
    """The shape that a config.json's values tell. Raises ConfigError as `find_shape` does."""
    inner = config.get("text_config")
    text = {**config, **inner} if isinstance(inner, Mapping) else config
    experts = [key for key in text if "experts" in key and text[key]]
    counts = [text[key] for key in ("num_experts", "num_local_experts") if key in text]
    if experts and (any(counts) or not counts):  # Granite says how many a token has, of none
        raise ConfigError(
            f"{name}: has {', '.join(sorted(experts))}; expected a dense model, as how many "
            "experts a step reads depends on its text"
        )
    if may_keep_states(text):
        found = stateful_shape(config, name)
        if found is not None:
            return _with_states(found, config, text, name)
    kinds = text.get("layer_types")
    kinds = list(kinds) if isinstance(kinds, list) else []
    strange = {str(kind) for kind in kinds} - {"full_attention", "sliding_attention"}
    if strange:
        raise ConfigError(f"{name}: has layers of {', '.join(sorted(strange))}; expected attention")
    layers, heads = _size(text, "num_hidden_layers", name), _size(text, "num_attention_heads", name)
    hidden = _size(text, "hidden_size", name)
    window = text.get("sliding_window") if text.get("use_sliding_window", True) else None
    window = window if isinstance(window, int) else 0
    sliding = kinds.count("sliding_attention") if kinds else (layers if window else 0)
    return ModelShape(
        name,
        layers,
        hidden,
        heads,
        _size(text, "num_key_value_heads", name, heads),
        _size(text, "head_dim", name, hidden // heads),
        _size(text, "intermediate_size", name),
        _size(text, "vocab_size", name),
        sliding_layers=sliding if window else 0,
        window=window,
        embeddings=_embeddings(config, text),
    )


def _with_states(
    found: StatefulShape, config: Mapping[str, object], text: Mapping[str, object], name: str
) -> ModelShape:
    return ModelShape(
        name,
        found.layers,
        _size(text, "hidden_size", name),
        _size(text, "num_attention_heads", name, 0 if found.attending else 1),
        found.kv_heads,
        found.head_dim,
        _size(text, "intermediate_size", name, 1),  # counted
        _size(text, "vocab_size", name),
        counted_weights=found.weights,
        keyless_layers=found.layers - found.attending,
        state_bytes=found.state_bytes,
        embeddings=_embeddings(config, text),
    )


def _embeddings(config: Mapping[str, object], text: Mapping[str, object]) -> int:
    """The model's own config says it, before its text tower's; where neither does, as with Gemma,
    it is as usual with the kind."""
    is_tied = {**text, **config}.get("tie_word_embeddings")
    if is_tied is None and isinstance(text.get("model_type"), str):
        from transformers import AutoConfig

        with contextlib.suppress(ValueError):  # a kind that transformers does not know
            usual = AutoConfig.for_model(text["model_type"])
            is_tied = getattr(usual, "tie_word_embeddings", None)
    return 0 if is_tied is True else 1


def _size(text: Mapping[str, object], key: str, name: str, default: int = 0) -> int:
    value = text.get(key) or default
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}: its config says {key}={text.get(key)!r}, expected a number")
    return value
