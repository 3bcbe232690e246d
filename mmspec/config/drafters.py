"""DrafterConfig: which drafter, and the parameters of each one there is."""

from dataclasses import dataclass, field


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


@dataclass(kw_only=True)
class TreeConfig:
    """How the trees of a model that drafts grow."""

    max_depth: int = 6
    top_k: int = 4  # children a node, and nodes a level that get children
    min_confidence: float = 0.1
    branching: str = "best"  # "cape": a chain, and leaves beside it where the draft is not sure
    cape_thresholds: list[float] = field(default_factory=lambda: [0.3, 0.6, 0.8])
    cape_widths: list[int] = field(default_factory=lambda: [8, 6, 4, 2])  # the first included
    draw: str = "coupled"  # "sample": drawn from q, for rules that divide by it
    profile: list[int] = field(default_factory=list)  # "sample": children a node, by depth


@dataclass(kw_only=True)
class DraftModelConfig(TreeConfig):
    """Another model that drafts, and how its trees grow."""

    path: str = ""  # a local folder, a bundled model's name or a hub name
    dtype: str = "auto"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    images: str = "auto"  # give, thin, caption or omit; auto: give where the model can see
    thin_keep: float = 0.25  # "thin": share of an image's tokens that stays
    caption: str | None = None  # "caption": the text for every image; None: a model's own words
    early_begin: str = "auto"  # of its kernels on a GPU, as decode.early_begin


@dataclass(kw_only=True)
class CompressedKVConfig(TreeConfig):
    """The target as its own drafter, over a small view of its KV."""

    policy: str = "snapkv"  # window, snapkv, topk_chunks, visual; several joined by "+"
    budget: int = 1024  # tokens of the text that a view shows
    recent: int = 64  # newer ones that join, before the policy chooses anew
    max_share: float = 0.1  # of the text's KV that a view may take; 1: no bound
    weights: str = "same"  # a low-bit copy of the linear layers drafts: int8, int4, fp8, ...
    layers_skipped: list[int] = field(default_factory=list)  # that a draft leaves out, from 0
    top_k: int = 1  # children a node
    width: int = 1  # nodes a level that get children
    min_confidence: float = 0.3


@dataclass(kw_only=True)
class EagleConfig(TreeConfig):
    """A trained head over the target's hidden states (EAGLE-1 to 3), and how its trees grow."""

    path: str = ""  # the head's folder or hub name
    revision: str | None = None
    dtype: str = "auto"  # "auto": the target's
    top_k: int = 8
    min_confidence: float = 0.05
    window: int = 4096  # newest tokens of a text that the head sees


@dataclass(kw_only=True)
class MtpConfig(TreeConfig):
    """The target's own layer for the tokens to come, and how its trees grow."""

    path: str = ""  # a folder or hub name with the layer's weights; "": the target's own
    revision: str | None = None
    dtype: str = "auto"  # "auto": the target's
    max_depth: int = 4
    window: int = 4096  # newest tokens of a text that the layer sees


@dataclass
class CascadeConfig:
    """A cheap drafter below compressed_kv, whose parameters hold for the middle level."""

    lower: str = "prompt_lookup"
    max_depth: int = 24  # tokens handed on to the target
    max_forwards: int = 4  # over the view, each verifies a tree of the lower drafter's
    lower_nodes: int = 16  # of that tree


@dataclass(kw_only=True)
class LayerSkipConfig(TreeConfig):
    """The target as its own drafter, with some of its layers left out."""

    skip: float = 0.45  # share of the layers; which ones is found out while generating
    layers: list[int] = field(default_factory=list)  # these instead, by index from 0
    weights: str = "same"  # a low-bit copy of the linear layers drafts: int8, int4, fp8, ...
    top_k: int = 1  # children a node
    min_confidence: float = 0.3
    trials: int = 48  # of other layers, a forward each; 0: an even choice stays


@dataclass
class LookaheadConfig:
    """The target's own guesses at tokens yet to come, found while it verifies."""

    window: int = 15  # W: columns of the window
    ngram: int = 5  # N: tokens of an n-gram, levels of the window and one more
    guess_set: int = 15  # G: n-grams kept for each first token
    pool_from_prompt: bool = True  # the n-grams of the prompt and of the text join them


@dataclass
class TokenRecyclingConfig:
    """What the target held likely before, drafted again."""

    top_k: int = 8  # tokens kept of each context
    max_depth: int = 8
    min_confidence: float = 0.001
    contexts: int = 65_536  # pairs of tokens kept of a namespace, some 500 bytes each


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
class DFlashConfig:
    """A block diffusion head for the target, and how its trees grow."""

    path: str = ""  # the head's folder or hub name
    revision: str | None = None
    dtype: str = "auto"  # "auto": the target's
    block: int | None = None  # tokens of a block, the newest included; None: as it was trained
    top_k: int = 8  # tokens of each place
    min_confidence: float = 0.05
    draw: str = "coupled"  # "sample": drawn from q, for rules that divide by it
    profile: list[int] = field(default_factory=list)  # "sample": children a node, by depth
    window: int = 4096  # newest tokens of a text that the head sees


@dataclass(kw_only=True)
class GlideConfig(TreeConfig):
    """A trained head that sees the target's own KV."""

    path: str = ""  # a folder or a hub name
    revision: str | None = None
    prompt_tokens: int = 1024  # of a prompt's end, read into the head's own KV
    max_depth: int = 5
    branching: str = "cape"  # "best": a tree of the likeliest paths


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
    mtp: MtpConfig = field(default_factory=MtpConfig)
    glide: GlideConfig = field(default_factory=GlideConfig)
    cascade: CascadeConfig = field(default_factory=CascadeConfig)
    lookahead: LookaheadConfig = field(default_factory=LookaheadConfig)
    token_recycling: TokenRecyclingConfig = field(default_factory=TokenRecyclingConfig)
    medusa: MedusaConfig = field(default_factory=MedusaConfig)
    dflash: DFlashConfig = field(default_factory=DFlashConfig)
