"""BoundGlide: a GliDe head at work for its target, the cache of all its sessions with it."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.base import DraftSession
from mmspec.drafters.forwards import ForwardCost, num_weights
from mmspec.drafters.glide.bound_head import HeadForTarget
from mmspec.drafters.glide.graphs import GlideGraphs
from mmspec.drafters.glide.layer_kv import layer_kv
from mmspec.drafters.glide.module import GlideHead
from mmspec.drafters.glide.scoring import GlideScorer
from mmspec.drafters.glide.session import FEW, GlideSession
from mmspec.drafters.growing.trees import GrowingTrees, Start
from mmspec.drafters.heads import TargetEnds, placed
from mmspec.errors import ConfigError
from mmspec.kv import KVCache
from mmspec.state import Prefill, Prompt
from mmspec.target import Target
from mmspec.tree import TokenTree

if TYPE_CHECKING:
    from mmspec.drafters.glide.settings import Glide

_CHUNK = 256  # tokens read in one forward
_LEAST_READABLE = 32  # tokens of a text, however few the head was trained on


class BoundGlide:
    """Drafts for one target. One cache holds the rows of all its sessions, whatever call or thread
    they belong to; `lock` is held while it is read or written."""

    name = "glide"

    def __init__(self, settings: "Glide", head: GlideHead, target: Target) -> None:
        """Raises ConfigError for a head of another target."""
        self.settings = settings
        self.draws = settings.trees.draws
        ends = TargetEnds(target)
        check_fits(head, target, ends)
        head = placed(head, ends, ends.dtype).eval()
        self.head = HeadForTarget(head, ends, num_layers=target.last_tap)
        self._graphs = GlideGraphs(target, self.head)
        self.recorded = self._graphs.recorded
        self.cache = KVCache(self.head.num_layers, pool=self._graphs.pool)
        self.lock = threading.RLock()
        self.cost = ForwardCost()
        self._trees = GrowingTrees(settings.trees, self.cost, self.name, target.vocab_size)
        context = head.config.block.max_positions
        self.num_readable = max(context - settings.trees.deepest, _LEAST_READABLE)
        self.num_read = min(settings.prompt_tokens, self.num_readable // 2)
        *lower, last = head.model.blocks
        read = [*lower, last.self_attn.k_proj, last.self_attn.v_proj]
        read_weights = sum(weight.numel() for part in read for weight in part.parameters())
        self.read_share = read_weights / num_weights(target.model)  # of the target's

    def free_recorded(self) -> None:
        with self.lock:
            self._graphs.clear()

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> GlideSession:
        assert prefill.cache is not None, "the prefill does not say where the row's keys are"
        return GlideSession(self, prompt.num_tokens, prefill.placement, prefill.cache, guide)

    def propose_together(
        self, sessions: Sequence[DraftSession], texts: Sequence[Sequence[int]], budget: int
    ) -> list[TokenTree]:
        """One tree a session; a level is one forward over the new nodes of all of them."""
        own = [cast(GlideSession, session) for session in sessions]
        with self.lock:
            for session, tokens in zip(own, texts, strict=True):
                session.catch_up(tokens)
            self.read_late(own)
            starts = [Start(session.placement, session.missing) for session in own]
            return self._trees.grown(self._scorer(own), self.cache, own, texts, starts, budget)

    def read_late(self, sessions: Sequence[GlideSession]) -> None:
        """Reads the prompts' ends, and what was chosen while nobody asked, all rows together, in
        chunks."""
        while late := [session for session in sessions if len(session.missing) > FEW]:
            chunks = [session.missing[:-1][:_CHUNK] for session in late]
            trees = [TokenTree.chain(c[0], c[1:], (1.0,) * len(c[1:]), "") for c in chunks]
            placements = [session.placement for session in late]
            self._scorer(late).read(trees, self.cache, placements)
            for session, chunk in zip(late, chunks, strict=True):
                session.keep(range(len(chunk)))

    def _scorer(self, sessions: Sequence[GlideSession]) -> GlideScorer:
        sights = {session.placement.row: session.sight for session in sessions}
        return GlideScorer(self.head, sessions[0].target_cache, sights, self._graphs)


def check_fits(head: GlideHead, target: Target, ends: TargetEnds) -> None:
    """Raises ConfigError for a head of another target."""
    config, block = head.config, head.config.block
    kept = [layer_kv(target, layer) for layer in dict.fromkeys(config.target_layers)]
    for what, is_right, got, expected in (
        ("vocab_size", block.vocab_size == ends.vocab_size or not config.owns_ends,
         block.vocab_size, f"{ends.vocab_size}, the target's"),
        ("hidden_size", block.hidden_size == ends.hidden_size or config.owns_ends,
         block.hidden_size, f"{ends.hidden_size}, as wide as the target's lm_head"),
        ("target_layers", len(config.target_layers) == block.num_layers,
         list(config.target_layers), f"one for each of its {block.num_layers} layers"),
        ("large_num_attention_heads", all(config.num_target_heads % n == 0 for n, _, _ in kept),
         config.num_target_heads, f"a multiple of the target's {kept[0].kv_heads} KV heads"),
        ("large_head_dim", all(config.target_head_dim == size for _, size, _ in kept),
         config.target_head_dim, f"{kept[0].key_dim}, the target's"),
        ("large_value_dim", all(config.target_value_dim == size for _, _, size in kept),
         config.target_value_dim, f"{kept[0].value_dim}, the target's"),
    ):  # fmt: skip
        if not is_right:
            raise ConfigError(
                f"drafter.glide: the head's {what} is {got}, expected {expected}; take a head that "
                f"was trained for {type(target.model).__name__} of this size"
            )
