"""Settings from three places, later ones win: the dataclasses below, a YAML file, overrides.

Classes elsewhere take plain parameters; only `build.py` and the command line read a `Config`.
Values are checked where they are used; here only names and types are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import cast, get_type_hints

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmspec.errors import ConfigError

CONFIG_DIR = Path(__file__).parent / "configs"


@dataclass
class ModelConfig:
    """Which target, and how it is loaded."""

    path: str = ""  # a local folder or a hub name
    dtype: str = "auto"  # "auto": as the weights are stored
    device: str = "auto"
    device_map: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    context: int | None = None  # tokens; more than the model was made for: positions are scaled


@dataclass
class InputConfig:
    """What a request may bring in."""

    max_image_pixels: int = 64_000_000
    max_image_bytes: int = 256 * 2**20  # of a file, a video's or recording's too
    max_audio_seconds: float = 3600.0  # of a request's recordings together
    max_request_pixels: int = 1_024_000_000  # of a request's images and videos together
    max_request_bytes: int = 2**30  # of its encoded files together
    allow_http: bool = False  # media by http(s) addresses of the internet
    allow_private_http: bool = False  # and of this machine, of private networks, or by a proxy
    allow_files: bool = True  # media by a path on this machine
    control_tokens: str = "neutralise"  # control or media tokens inside a user's text


@dataclass
class PromptLookupConfig:
    """Parameters of the drafter that copies from prompt and output."""

    max_depth: int = 64
    max_matches: int = 16
    min_match: int = 2
    max_match: int = 32
    min_confidence: float = 0.15


@dataclass
class RetrievalConfig:
    """Parameters of the drafter that copies from datastores, the request and earlier outputs."""

    datastores: list[str] = field(default_factory=list)  # folders, as `mmspec index build` makes
    sources: list[str] = field(default_factory=lambda: ["suffix", "dense", "online", "generated"])
    max_depth: int = 48
    max_places: int = 16  # of each source
    min_match: int = 2
    max_match: int = 32
    min_confidence: float = 0.15
    generated_bytes: int = 64 * 2**20  # of memory for earlier outputs; 0: none are kept
    generated_path: str | None = None  # a file that they are kept in; None: nothing on disk


@dataclass
class DraftModelConfig:
    """Another model that drafts, and how its trees grow."""

    path: str = ""  # a local folder, a bundled model's name or a hub name
    dtype: str = "auto"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    max_depth: int = 6
    top_k: int = 4  # children a node, and nodes a level that get children
    min_confidence: float = 0.1
    branching: str = "best"  # "cape": a chain, and leaves beside it where the draft is not sure
    cape_thresholds: list[float] = field(default_factory=lambda: [0.3, 0.6, 0.8])
    cape_widths: list[int] = field(default_factory=lambda: [8, 6, 4, 2])  # the first included
    draw: str = "coupled"  # "sample": drawn from q, for rules that divide by it
    profile: list[int] = field(default_factory=list)  # "sample": children a node, by depth
    images: str = "auto"  # give, thin, caption or omit; auto: give where the model can see
    thin_keep: float = 0.25  # "thin": share of an image's tokens that stays
    caption: str | None = None  # "caption": the text for every image; None: a model's own words


@dataclass
class CompressedKVConfig:
    """The target as its own drafter, over a small view of its KV."""

    policy: str = "snapkv"  # window, snapkv, topk_chunks, visual; several joined by "+"
    budget: int = 1024  # tokens of the text that a view shows
    recent: int = 64  # newer ones that join, before the policy chooses anew
    max_share: float = 0.1  # of the text's KV that a view may take; 1: no bound
    weights: str = "same"  # a low-bit copy of the linear layers drafts: int8, int4, fp8, ...
    layers_skipped: list[int] = field(default_factory=list)  # that a draft leaves out, from 0
    max_depth: int = 6
    top_k: int = 1  # children a node
    width: int = 1  # nodes a level that get children
    min_confidence: float = 0.3
    branching: str = "best"  # "cape": a chain, and leaves beside it where the draft is not sure
    cape_thresholds: list[float] = field(default_factory=lambda: [0.3, 0.6, 0.8])
    cape_widths: list[int] = field(default_factory=lambda: [8, 6, 4, 2])  # the first included
    draw: str = "coupled"  # "sample": drawn from q, for rules that divide by it
    profile: list[int] = field(default_factory=list)  # "sample": children a node, by depth


@dataclass
class EagleConfig:
    """A trained head over the target's hidden states (EAGLE-1 to 3), and how its trees grow."""

    path: str = ""  # the head's folder or hub name
    revision: str | None = None
    dtype: str = "auto"  # "auto": the target's
    max_depth: int = 6
    top_k: int = 8  # children a node, and nodes a level that get children
    min_confidence: float = 0.05
    branching: str = "best"  # "cape": a chain, and leaves beside it where the draft is not sure
    cape_thresholds: list[float] = field(default_factory=lambda: [0.3, 0.6, 0.8])
    cape_widths: list[int] = field(default_factory=lambda: [8, 6, 4, 2])  # the first included
    draw: str = "coupled"  # "sample": drawn from q, for rules that divide by it
    profile: list[int] = field(default_factory=list)  # "sample": children a node, by depth
    window: int = 4096  # newest tokens of a text that the head sees


@dataclass
class CascadeConfig:
    """A cheap drafter below compressed_kv, whose parameters hold for the middle level."""

    lower: str = "prompt_lookup"
    max_depth: int = 24  # tokens handed on to the target
    max_forwards: int = 4  # over the view, each verifies a tree of the lower drafter's
    lower_nodes: int = 16  # of that tree


@dataclass
class LayerSkipConfig:
    """The target as its own drafter, with some of its layers left out."""

    skip: float = 0.45  # share of the layers; which ones is found out while generating
    layers: list[int] = field(default_factory=list)  # these instead, by index from 0
    weights: str = "same"  # a low-bit copy of the linear layers drafts: int8, int4, fp8, ...
    max_depth: int = 6
    top_k: int = 1  # children a node
    min_confidence: float = 0.3
    branching: str = "best"  # "cape": a chain, and leaves beside it where the draft is not sure
    cape_thresholds: list[float] = field(default_factory=lambda: [0.3, 0.6, 0.8])
    cape_widths: list[int] = field(default_factory=lambda: [8, 6, 4, 2])  # the first included
    trials: int = 48  # of other layers, a forward each; 0: an even choice stays


@dataclass
class LookaheadConfig:
    """The target's own guesses at tokens yet to come, found while it verifies."""

    window: int = 15  # W: columns of the window
    ngram: int = 5  # N: tokens of an n-gram, levels of the window and one more
    guess_set: int = 15  # G: n-grams kept for each first token
    pool_from_prompt: bool = True  # the n-grams of the prompt and of the text join them


@dataclass
class MedusaConfig:
    """Medusa heads for the target, and how their trees grow."""

    path: str = ""  # the heads' folder or hub name
    revision: str | None = None
    max_depth: int | None = None  # heads that are asked; None: all
    top_k: int = 10  # tokens of each head
    min_confidence: float = 0.05
    tree: list[list[int]] = field(default_factory=list)  # a fixed one: paths of ranks
    draw: str = "coupled"  # "sample": drawn from q, for rules that divide by it
    profile: list[int] = field(default_factory=list)  # "sample": children a node, by depth


@dataclass
class GlideConfig:
    """A trained head that sees the target's own KV."""

    path: str = ""  # a folder or a hub name
    revision: str | None = None
    prompt_tokens: int = 1024  # of a prompt's end, read into the head's own KV
    max_depth: int = 5
    branching: str = "cape"  # "best": a tree of the likeliest paths
    cape_thresholds: list[float] = field(default_factory=lambda: [0.3, 0.6, 0.8])
    cape_widths: list[int] = field(default_factory=lambda: [8, 6, 4, 2])  # the first included
    top_k: int = 4  # "best": children a node, and nodes a level that get children
    min_confidence: float = 0.1
    draw: str = "coupled"  # "sample": drawn from q, for rules that divide by it
    profile: list[int] = field(default_factory=list)  # "sample": children a node, by depth


@dataclass
class DrafterConfig:
    """Which drafter, and the parameters of each one there is."""

    name: str = "prompt_lookup"  # several joined by "+"; "none": plain decoding
    prompt_lookup: PromptLookupConfig = field(default_factory=PromptLookupConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    draft_model: DraftModelConfig = field(default_factory=DraftModelConfig)
    compressed_kv: CompressedKVConfig = field(default_factory=CompressedKVConfig)
    layer_skip: LayerSkipConfig = field(default_factory=LayerSkipConfig)
    eagle: EagleConfig = field(default_factory=EagleConfig)
    glide: GlideConfig = field(default_factory=GlideConfig)
    cascade: CascadeConfig = field(default_factory=CascadeConfig)
    lookahead: LookaheadConfig = field(default_factory=LookaheadConfig)
    medusa: MedusaConfig = field(default_factory=MedusaConfig)


@dataclass
class DecodeConfig:
    """How drafts are checked."""

    verifier: str = "coupled"  # greedy, speculative, recursive, block, typical_lossy
    controller: str = "auto"  # "fixed": always drafts and scores all it can
    max_nodes: int = 64  # drafted nodes a step, node 0 not among them
    max_rows: int = 8  # requests decoded together
    prefill_chunk: int | None = 4096  # prompt tokens a step; None or 0: a prompt in one go
    probe: bool = True  # compare a small tree with plain decoding once, at load
    attention: str = "auto"  # "auto": mmspec's own where the probe agrees; "model": the model's
    attention_backend: str = "auto"  # of mmspec's own; a name is asked before the default order
    exactness: str = "standard"  # "bitwise": the same bits of logits with and without drafts
    choosing: str = "auto"  # "device": all nodes' choices at once, "host": along the walk
    packed_weights: str = "auto"  # copies for quick score calls on a CPU: auto, always, never
    cuda_graphs: str = "auto"  # score calls and draft steps recorded on a GPU: auto, never


@dataclass
class CacheConfig:
    """What an engine keeps from one request to the next; 0 is nothing."""

    prefix_bytes: int = 2**30  # keys and values of prompts and answers, on the model's device
    feature_bytes: int = 256 * 2**20  # what the encoders said of images and videos


@dataclass
class TrainMedusaConfig:
    """How Medusa heads are trained."""

    num_heads: int = 5  # drafts a step
    num_layers: int = 1  # residual blocks a head
    own_heads: bool = True  # False: all speak through the target's own head, and are small
    loss_decay: float = 0.8  # weight of a head beside the one before


@dataclass
class TrainEagleConfig:
    """How EAGLE-1 and EAGLE-2 heads are trained."""

    noise: float = 0.1  # added to the target's states: uniform, as much on either side
    token_weight: float = 0.1  # of the loss on tokens beside the one on states
    depth: int = 5  # drafts a step that are evaluated
    layers: int = 1


@dataclass
class TrainEagle3Config:
    """How EAGLE-3 heads are trained."""

    steps: int = 7  # of the training-time test: drafts that read drafts
    loss_decay: float = 0.8  # weight of a step beside the one before
    vocabulary: int = 32000  # of the most frequent tokens; all, where the target has fewer
    layers: int = 1


@dataclass
class TrainGlideConfig:
    """How GliDe draft models are trained."""

    max_drafts: int = 5  # the longest speculation that is simulated
    layers: int = 1  # decoder blocks


@dataclass
class TrainConfig:
    """How `mmspec train` makes heads."""

    answers: str = "auto"  # own: the target's, given: what the data has, auto: own where none is
    temperature: float = 0.0  # of the target's own answers
    max_new_tokens: int = 512  # of each of them
    learn: str = "answers"  # "all": prompts too
    max_tokens: int = 2048  # of a text
    held_out: float = 0.05  # share of the texts that only the evaluation sees
    rate: float | None = None  # the highest learning rate; None: the kind's own
    warmup: float = 0.05  # share of the run in which the rate rises
    decay: str = "cosine"  # linear, none
    weight_decay: float = 0.0
    clip: float = 0.5  # the gradients' norm, at most
    batch_tokens: int = 4096  # with padding
    accumulate: int = 1  # batches a step
    seed: int = 0
    top_k: int = 4  # of a draft's best tokens, in the evaluation
    checkpoint_every_s: float = 120.0
    medusa: TrainMedusaConfig = field(default_factory=TrainMedusaConfig)
    eagle: TrainEagleConfig = field(default_factory=TrainEagleConfig)
    eagle3: TrainEagle3Config = field(default_factory=TrainEagle3Config)
    glide: TrainGlideConfig = field(default_factory=TrainGlideConfig)


@dataclass
class Config:
    """Everything that can be set from a YAML file."""

    model: ModelConfig = field(default_factory=ModelConfig)
    inputs: InputConfig = field(default_factory=InputConfig)
    drafter: DrafterConfig = field(default_factory=DrafterConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def load_config(
    path_or_name: str | Path | None = None,
    overrides: Sequence[str] | Mapping[str, object] = (),
) -> Config:
    """Read a configuration: defaults, then the YAML file, then the overrides.

    `path_or_name` is a YAML file or the bare name of one that comes with mmspec (`"plain"`); None
    is the defaults alone. `overrides` are `"decode.max_nodes=32"` strings, or a mapping whose keys
    are dotted or nested.

    Raises ConfigError for a file that is not there or not a YAML mapping, for a key that mmspec
    does not know and for a value of the wrong type.
    """
    config = OmegaConf.structured(Config)
    if path_or_name is not None:
        path = find_config(path_or_name)
        _assign(config, _read_yaml(path), source=str(path))
    if isinstance(overrides, str):
        raise ConfigError(f"overrides: got one string, expected a list of them: [{overrides!r}].")
    if isinstance(overrides, Mapping):
        _assign(config, overrides, source="overrides")
    else:
        for override in overrides:
            _assign(config, _read_override(override), source=f"override {override!r}")
    try:
        return cast(Config, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere, a value "???"
        raise ConfigError(f"{error.full_key}: {error.msg}.") from error


def config_names() -> list[str]:
    """The bare names that `load_config` knows."""
    return sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))


def find_config(path_or_name: str | Path) -> Path:
    """The file that a path or a bare name means; a bare name is first sought among mmspec's own."""
    path = Path(path_or_name)
    if path.name == str(path_or_name) and path.suffix not in (".yaml", ".yml"):
        if path.name in config_names():
            return CONFIG_DIR / f"{path.name}.yaml"
    if path.is_file():
        return path
    raise ConfigError(
        f"No config file {str(path_or_name)!r}. Give the path of a YAML file, or one of the names "
        f"{', '.join(config_names())}."
    )


def _read_yaml(path: Path) -> Mapping[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)  # nodes only, no objects
        if root is None:  # empty, or comments alone
            return {}
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(
                f"{path}: got a YAML {root.id}, expected a mapping such as `decode: "
                "{max_nodes: 32}`."
            )
        return _as_mapping(OmegaConf.create(text))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: {error.reason}.") from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from error


def _read_override(override: str) -> Mapping[str, object]:
    key, equals, _ = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"Override {override!r}: expected key=value, such as decode.max_nodes=32."
        )
    try:
        return _as_mapping(OmegaConf.from_dotlist([override]))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"Override {override!r}: the value is not valid YAML: {error}") from error


def _as_mapping(given: DictConfig | ListConfig) -> Mapping[str, object]:
    # Interpolations are kept as they stand: they are resolved when everything is merged.
    return cast(Mapping[str, object], OmegaConf.to_container(given, resolve=False))


def _assign(config: DictConfig, given: Mapping[str, object], *, source: str) -> None:
    """Set every leaf of `given` in `config` (mutated)."""
    expected = dict(_keys(Config))
    for key, value in _leaves(given, expected):
        if key not in expected:
            raise ConfigError(f"{source}: unknown key {key!r}. {_suggest(key, expected)}")
        if is_dataclass(expected[key]):
            inner = ", ".join(f.name for f in fields(expected[key]))
            raise ConfigError(f"{source}: {key}: got {value!r}, expected the keys {inner}.")
        try:
            OmegaConf.update(config, key, value, merge=False)
        except OmegaConfBaseException as error:
            raise ConfigError(
                f"{source}: {key}: got {value!r} ({type(value).__name__}), expected "
                f"{_type_name(expected[key])}."
            ) from error


def _keys(section: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Every dotted key below `section` with its type, sections among them."""
    for name, kind in get_type_hints(section).items():
        yield prefix + name, kind
        if is_dataclass(kind):
            yield from _keys(cast(type, kind), f"{prefix}{name}.")


def _leaves(
    given: Mapping[str, object], expected: Mapping[str, type], prefix: str = ""
) -> Iterator[tuple[str, object]]:
    """Dotted keys and values; goes down only into sections, so that an unknown one is named."""
    for name, value in given.items():
        key = f"{prefix}{name}"
        is_section = is_dataclass(expected.get(key))
        if is_section and isinstance(value, Mapping):
            yield from _leaves(value, expected, f"{key}.")
        elif not (is_section and value is None):  # `decode:` with nothing below it says nothing
            yield key, value


def _suggest(key: str, known: Mapping[str, type]) -> str:
    def similarity(other: str) -> tuple[float, float]:
        # Last parts first: two keys of one section are alike by their section alone.
        last, other_last = key.rpartition(".")[2], other.rpartition(".")[2]
        return (
            SequenceMatcher(None, last, other_last).ratio(),
            SequenceMatcher(None, key, other).ratio(),
        )

    ranked = sorted(known, key=similarity, reverse=True)
    nearest = [other for other in ranked[:3] if similarity(other)[0] >= 0.6]
    if nearest:
        return f"Did you mean {' or '.join(nearest)}?"
    section = key.rpartition(".")[0]
    prefix = f"{section}." if section in known else ""
    inside = [k for k in known if k.startswith(prefix) and "." not in k[len(prefix) :]]
    return f"Known here: {', '.join(inside)}."


def _type_name(kind: type) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)  # `str | None` has no __name__
