"""Config: everything that can be set, by sections."""

from dataclasses import dataclass, field

from mmspec.config.drafters import DrafterConfig
from mmspec.config.training import TrainConfig


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
class DecodeConfig:
    """How drafts are checked."""

    verifier: str = "coupled"  # greedy, speculative, recursive, block, typical_lossy
    controller: str = "auto"  # "fixed": always drafts and scores all it can
    max_nodes: int = 64  # drafted nodes a step, node 0 not among them
    state_bytes: int = 4 * 2**30  # running states of a step's nodes: no more are drafted
    max_rows: int = 8  # requests decoded together
    prefill_chunk: int | None = 4096  # prompt tokens a step; None or 0: a prompt in one go
    probe: bool = True  # compare a small tree with plain decoding once, at load
    attention: str = "auto"  # "auto": mmspec's own where the probe agrees; "model": the model's
    attention_backend: str = "auto"  # of mmspec's own; a name is asked before the default order
    exactness: str = "standard"  # "bitwise": the same bits of logits with and without drafts
    choosing: str = "auto"  # "device": all nodes' choices at once, "host": along the walk
    packed_weights: str = "auto"  # copies for quick score calls on a CPU: auto, always, never
    cuda_graphs: str = "auto"  # score calls and draft steps recorded on a GPU: auto, never
    overlap: str = "auto"  # plain steps begun before the tokens ahead are read: auto, always, never
    early_begin: str = "auto"  # kernels that begin before the one ahead has ended: auto, never


@dataclass
class CacheConfig:
    """What an engine keeps from one request to the next; 0 is nothing."""

    prefix_bytes: int = 2**30  # keys and values of prompts and answers, on the model's device
    feature_bytes: int = 256 * 2**20  # what the encoders said of images and videos


@dataclass
class Config:
    """Everything that can be set from a YAML file."""

    model: ModelConfig = field(default_factory=ModelConfig)
    inputs: InputConfig = field(default_factory=InputConfig)
    drafter: DrafterConfig = field(default_factory=DrafterConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
