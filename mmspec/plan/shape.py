"""ModelShape: what a decoder's cost depends on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmspec.errors import ConfigError


@dataclass(frozen=True)
class ModelShape:
    """A decoder; of a vision-language model its text tower."""

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
    counted_weights: float | None = None  # matrices and head, where they were counted otherwise
    counted_kv: float | None = None  # numbers that a token keeps in a layer, where counted
    keyless_layers: int = 0  # that keep a running state, and look at no keys
    shared_layers: int = 0  # that look at the keys of another
    state_bytes: int = 0  # of all running states of one row, or of a drafted node
    looked_up: float = 0  # weights that no forward reads whole: an embedding that is not the head
    expert_weights: int = 0  # of all experts, beside the others
    expert_share: float = 1.0  # of them, that a token is multiplied by
    max_context: int = 0  # tokens that the model was made for; 0: not known
    head_width: int = 0  # of what the head reads, where it is not as wide as the layers
    mtp_layers: int = 0  # for the tokens to come (multi-token prediction), beside its `layers`

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads

    @property
    def head_weights(self) -> int:
        return self.vocab * (self.head_width or self.hidden)

    @property
    def layer_weights(self) -> float:
        """Weights of one layer's matrices, that a token is multiplied by."""
        if self.counted_weights is not None:
            used = self.expert_weights * self.expert_share
            return (self.counted_weights - self.head_weights + used) / self.layers
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def kv_values(self) -> float:
        """Numbers that one token keeps in one layer."""
        if self.counted_kv is not None:
            return self.counted_kv
        return 2 * self.kv_heads * self.head_dim

    def seen_layers(self, context: int) -> float:
        """Layers that attend, each by the share of `context` tokens that it sees."""
        share = min(self.window / context, 1.0) if self.sliding_layers else 1.0
        return self.layers - self.keyless_layers - self.sliding_layers * (1.0 - share)


def _llama(name: str, *sizes: int, max_context: int = 0, is_tied: bool = False) -> ModelShape:
    layers, hidden, heads, kv_heads, intermediate, vocab = sizes
    return ModelShape(
        name,
        layers,
        hidden,
        heads,
        kv_heads,
        hidden // heads,
        intermediate,
        vocab,
        looked_up=0 if is_tied else vocab * hidden,
        max_context=max_context,
    )


_KNOWN = (
    _llama("llama-2-7b", 32, 4096, 32, 32, 11_008, 32_000, max_context=2**12),
    _llama("llama-3-8b", 32, 4096, 32, 8, 14_336, 128_256, max_context=2**13),
    _llama("llama-3-70b", 80, 8192, 64, 8, 28_672, 128_256, max_context=2**13),
    _llama("llama-3.2-1b", 16, 2048, 32, 8, 8192, 128_256, max_context=2**17, is_tied=True),
    _llama("llama-3.2-3b", 28, 3072, 24, 8, 8192, 128_256, max_context=2**17, is_tied=True),
    _llama("mistral-7b", 32, 4096, 32, 8, 14_336, 32_000, max_context=2**15),
    _llama("qwen2.5-0.5b", 24, 896, 14, 2, 4864, 151_936, max_context=2**15, is_tied=True),
    _llama("qwen2.5-1.5b", 28, 1536, 12, 2, 8960, 151_936, max_context=2**17, is_tied=True),
    _llama("qwen2.5-7b", 28, 3584, 28, 4, 18_944, 152_064, max_context=2**17),
    _llama("qwen2.5-32b", 64, 5120, 40, 8, 27_648, 152_064, max_context=2**17),
    _llama("qwen3-8b", 36, 4096, 32, 8, 12_288, 151_936, max_context=40_960),
    _llama("smollm2-135m", 30, 576, 9, 3, 1536, 49_152, max_context=2**13, is_tied=True),
    _llama("random-llama", 8, 512, 8, 2, 1376, 4096),  # of scripts/bench_score.py
)
SHAPES: dict[str, ModelShape] = {shape.name: shape for shape in _KNOWN}


def find_shape(name_or_path: str | Path) -> ModelShape:
    """A known shape by name, or that of a `config.json`, by its path or its folder's, or by a
    bundled model's name.

    Raises ConfigError for a name that is not known, a file that is no config, and a model that
    transformers does not build or run.
    """
    known = SHAPES.get(str(name_or_path).lower())
    if known is not None:
        return known
    from mmspec.target.load import BUNDLED, bundled_names  # torch comes with it

    path = Path(name_or_path)
    path = path if path.exists() else BUNDLED / path
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(
            f"model {str(name_or_path)!r}: expected a folder with a config.json, such a file, or "
            f"one of {', '.join([*SHAPES, *bundled_names()])}"
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
    """The shape of a config.json's values. Raises ConfigError as `find_shape` does."""
    from mmspec.plan.built import built_shape

    try:
        return built_shape(config, name)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    except Exception as error:  # what a config may say has no end
        raise ConfigError(
            f"{name}: its sizes are found by building the model without its weights, which failed "
            f"({type(error).__name__}: {next(iter(str(error).splitlines()), '')})"
        ) from error
