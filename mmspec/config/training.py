"""TrainConfig: how `mmspec train` makes heads."""

from dataclasses import dataclass, field


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
