"""BoundDFlash: a head at work for one target, the cache of all its sessions with it."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.base import DraftSession
from mmspec.drafters.dflash.attention import whole_blocks
from mmspec.drafters.dflash.bound_head import BlockHead
from mmspec.drafters.dflash.graphs import DFlashGraphs
from mmspec.drafters.eagle.session import EagleSession
from mmspec.drafters.forwards import num_weights
from mmspec.drafters.heads import OverCache, TextPlaces, writing_nodes
from mmspec.drafters.medusa.trees import DepthTrees
from mmspec.kv import KVCache
from mmspec.state import Placement, Prefill, Prompt, Taps
from mmspec.target import Target
from mmspec.tree import TokenTree
from mmspec.uploads import upload

if TYPE_CHECKING:
    from mmspec.drafters.dflash.settings import DFlash


class BoundDFlash:
    """Drafts for one target. One cache holds the contexts of all its sessions, whatever call or
    thread they belong to; `lock` is held while it is read or written."""

    name = "dflash"

    def __init__(self, settings: "DFlash", target: Target) -> None:
        self.head = BlockHead(settings.head, target, dtype=settings.dtype)
        self.taps = Taps(frozenset(self.head.taps), whole_prompt=True)
        self.draws = settings.trees.draws
        self.cost = None  # one forward, however deep the tree
        self._graphs = DFlashGraphs(target, self.head)
        self.recorded = self._graphs.recorded
        self.cache = KVCache(self.head.num_layers, pool=self._graphs.pool)
        self.lock = threading.RLock()
        self._trees = DepthTrees(settings.trees, self.name, target.vocab_size)
        self.window = settings.window
        # What reading a token takes of the target's own reading.
        self.size_share = settings.head.num_read_weights / num_weights(target.model)

    def free_recorded(self) -> None:
        with self.lock:
            self._graphs.clear()

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> EagleSession:
        return EagleSession(self, prompt.num_tokens, prefill, guide, TextPlaces())

    def propose_together(
        self, sessions: Sequence[DraftSession], texts: Sequence[Sequence[int]], budget: int
    ) -> list[TokenTree]:
        """One tree a session, of one forward of all their blocks."""
        own = [cast(EagleSession, session) for session in sessions]
        with self.lock:
            for session, tokens in zip(own, texts, strict=True):
                session.catch_up(tokens)
            behind = [s for s in zip(own, texts, strict=True) if s[0].is_behind]
            if behind:  # none is where a proposal that failed is asked for again
                read = [session.waiting(tokens)[1] for session, tokens in behind]
                placements = [session.placement for session, _ in behind]
                firsts = [self.cache.length(p.row) + p.position_offsets[0] for p in placements]
                self._read([p.row for p in placements], read, firsts)
                for session, _ in behind:
                    session.has_read()
            placements, depth = [session.placement for session in own], self._trees.depth(budget)
            logits = self._block(placements, texts, depth)
        return self._trees.grown(own, texts, logits.transpose(0, 1), budget)

    def read(self, row: int, ids: Sequence[int], features: Tensor, places: Tensor) -> None:
        """As `ReadingDrafter.read`: what the tokens are the features tell."""
        self._read([row], [features], [int(places[0, 0])])

    def _read(self, rows: Sequence[int], features: Sequence[Tensor], firsts: Sequence[int]) -> None:
        """Commits the keys of each row's `features` (tokens, layers * hidden) behind what it
        holds, from position `firsts` on."""
        counts = [part.shape[0] for part in features]
        positions = torch.tensor(firsts).unsqueeze(1) + torch.arange(max(counts))
        joined = pad_sequence(list(features), batch_first=True)
        with self.cache.writing(rows, counts) as plan:
            plan.is_viewed = False
            self.head.remember(joined, upload(positions, self.head.device), self.cache)
        self.cache.commit({row: range(count) for row, count in zip(rows, counts, strict=True)})

    @torch.no_grad()
    def _block(
        self, placements: Sequence[Placement], texts: Sequence[Sequence[int]], depth: int
    ) -> Tensor:
        """(rows, depth, vocab) what is said at the first masks. The block is whole all the same, as
        its tokens see each other."""
        head = self.head
        masks = [head.config.mask_token] * self._trees.settings.max_depth
        beliefs = [1.0] * len(masks)
        blocks = [TokenTree.chain(tokens[-1], masks, beliefs, "") for tokens in texts]
        with writing_nodes(
            blocks, self.cache, placements, reaches=head.reaches, device=head.device
        ) as nodes:
            logits = self._graphs.compute(nodes)
            if logits is not None:
                return head.over_target(logits[:, 1 : 1 + depth])
            whole = OverCache(self.cache, whole_blocks(nodes))
            states = head.states(nodes.ids, nodes.positions, nodes.attend, whole)
            return head.over_target(head.logits(states[:, 1 : 1 + depth]))
