"""Retrieval: what the user sets; BoundRetrieval: the same at work for one target."""

import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

from mmspec.calibration import Calibration
from mmspec.draft_guide import DraftGuide
from mmspec.drafters.base import DraftSession
from mmspec.drafters.retrieval.dense import DenseSource
from mmspec.drafters.retrieval.generated import GeneratedSource
from mmspec.drafters.retrieval.limits import Limits
from mmspec.drafters.retrieval.online import OnlineSource
from mmspec.drafters.retrieval.session import RetrievalSession
from mmspec.drafters.retrieval.source import Source
from mmspec.drafters.retrieval.store import OpenStore
from mmspec.drafters.retrieval.suffix import SuffixSource
from mmspec.errors import ConfigError, check_setting
from mmspec.inputs import InputProcessor
from mmspec.inputs.text_tokens import TextTokens
from mmspec.retrieval import Continuation, Datastore
from mmspec.state import Prefill, Prompt, Taps
from mmspec.target import Target
from mmspec.tree import TokenTree

SOURCES = ("suffix", "dense", "online", "generated")


class Retrieval:
    """Drafts from datastores, from the request's own texts and from earlier outputs."""

    name = "retrieval"

    def __init__(
        self,
        datastores: str | Path | Sequence[str | Path] = (),
        *,
        sources: Sequence[str] = SOURCES,
        max_depth: int = 48,
        max_places: int = 16,
        min_match: int = 2,
        max_match: int = 32,
        min_confidence: float = 0.15,
        generated_bytes: int = 64 * 2**20,
        generated_path: str | Path | None = None,
    ) -> None:
        """`datastores`: folders that `mmspec index build` or DatastoreWriter made, read by the
        source "suffix", and by "dense" where they have a dense index. `max_places` are looked at in
        each source; `min_match` and `max_match` count matching tokens before a copied place; a node
        is proposed if its whole path is accepted with at least `min_confidence`. Earlier outputs
        take up to `generated_bytes` of memory (0: none are kept), and are on disk only where
        `generated_path` names a file.

        Raises ConfigError.
        """
        for source in sources:
            if source not in SOURCES or list(sources).count(source) > 1:
                raise ConfigError(
                    f"drafter.retrieval.sources={list(sources)}: expected each at most once of "
                    f"{', '.join(SOURCES)}"
                )
        check = partial(check_setting, "drafter.retrieval")
        check("generated_bytes", generated_bytes >= 0, generated_bytes, "0 (off) or more")
        folders = [datastores] if isinstance(datastores, str | Path) else datastores
        self.datastores = [Path(folder) for folder in folders]
        self.sources = tuple(sources)
        self.limits = Limits(max_places, min_match, max_match, max_depth, min_confidence)
        self.generated_bytes = generated_bytes
        self.generated_path = None if generated_path is None else Path(generated_path)

    def for_target(self, target: Target, inputs: InputProcessor | None) -> "BoundRetrieval":
        """Opens the datastores and the file of generated texts.

        Raises DatastoreError where one does not fit the target, ConfigError where that cannot be
        told, for want of a tokenizer.
        """
        tokenizer = ""
        if self.datastores or self.generated_path:
            if inputs is None:
                raise ConfigError(
                    "drafter.retrieval: got a datastore or generated_path, but this engine has no "
                    "tokenizer to compare with theirs; expected mmspec.load(model, processor): "
                    "transformers' generate keeps its tokenizer from a custom_generate"
                )
            tokenizer = TextTokens(inputs.tokenizer).hash()
        stores = [
            OpenStore(Datastore.open(folder, tokenizer=tokenizer, vocab_size=target.vocab_size))
            for folder in self.datastores
        ]
        with_dense = [store for store in stores if store.current.manifest.dense is not None]
        sources = list[Source]()
        for name in self.sources:
            if name == "suffix" and stores:
                sources.append(SuffixSource(stores, self.limits))
            elif name == "dense" and with_dense:
                sources.append(DenseSource(with_dense, target, self.limits))
            elif name == "online":
                sources.append(OnlineSource(self.limits))
            elif name == "generated" and self.generated_bytes:
                most, path = self.generated_bytes, self.generated_path
                sources.append(
                    GeneratedSource(self.limits, max_bytes=most, path=path, tokenizer=tokenizer)
                )
        return BoundRetrieval(sources, self.limits)


class BoundRetrieval:
    """Drafts from some sources. `lock` is held while these are asked or told something."""

    name = Retrieval.name

    def __init__(self, sources: Sequence[Source], limits: Limits) -> None:
        self.limits = limits
        self.sources = {source.name: source for source in sources}
        self.taps = Taps(frozenset(tap for source in sources for tap in source.taps))
        self.learns = any(source.learns for source in sources)
        self.reads_text_alone = not self.taps.layers
        self.calibration = Calibration()  # of all requests: a new one begins where they stand
        self.lock = threading.Lock()

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> RetrievalSession:
        with self.lock:
            for source in self.sources.values():
                source.refresh()
        return RetrievalSession(self, prompt, prefill)

    def propose_together(
        self, sessions: Sequence[DraftSession], texts: Sequence[Sequence[int]], budget: int
    ) -> list[TokenTree]:
        """One tree a session; each source is asked once for all of them."""
        own = cast("Sequence[RetrievalSession]", sessions)
        queries = [session.query(tokens) for session, tokens in zip(own, texts, strict=True)]
        found: list[list[Continuation]] = [[] for _ in own]
        length = min(self.limits.max_depth, budget)
        with self.lock:
            for source in self.sources.values():
                for row, more in zip(found, source.find(queries, length=length), strict=True):
                    row += more
        return [
            session.draft(tokens[-1], row, budget)
            for session, tokens, row in zip(own, texts, found, strict=True)
        ]

    def was_useful(self, continuation: Continuation) -> None:
        with self.lock:
            self.sources[continuation.source].was_useful(continuation)

    def learn(self, tokens: Sequence[int], namespace: str) -> None:
        """A request has ended with this text; -1 where it cannot be copied."""
        with self.lock:
            for source in self.sources.values():
                source.learn(tokens, namespace)

    def forget(self, namespace: str | None = None) -> None:
        """Drops what earlier requests left, of one namespace or of all."""
        with self.lock:
            for source in self.sources.values():
                source.forget(namespace)
