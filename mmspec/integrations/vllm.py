"""vLLM: drafts for its distributed serving, from datastores and from each request's own text.

    MMSPEC_DATASTORE=my-datastore vllm serve path-or-hub-id --speculative-config '{
      "method": "custom_class",
      "custom_proposer_backend": "mmspec.integrations.vllm.MmspecProposer",
      "num_speculative_tokens": 8}'

vLLM's interface is experimental; vLLM verifies the drafts by its own rule. Nothing of vLLM is
imported here.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor
from transformers import AutoTokenizer

from mmspec.calibration import Calibration
from mmspec.drafters.copying import Copier
from mmspec.drafters.retrieval.limits import Limits
from mmspec.drafters.retrieval.store import OpenStore
from mmspec.errors import ConfigError, nearest
from mmspec.inputs.text_tokens import TextTokens
from mmspec.integrations.known_texts import BYTES_PER_TOKEN, KnownText, KnownTexts, Tokens
from mmspec.retrieval import Continuation, Datastore

DATASTORE_VARIABLE = "MMSPEC_DATASTORE"  # folders, separated as in PATH


class SpeculativeConfig(Protocol):
    """What is read of vLLM's."""

    num_speculative_tokens: int


class ModelConfig(Protocol):
    """What is read of vLLM's."""

    max_model_len: int
    tokenizer: str
    tokenizer_revision: str | None
    trust_remote_code: bool

    def get_vocab_size(self) -> int: ...


class VllmConfig(Protocol):
    """What is read of vLLM's. `additional_config` may hold settings under "mmspec"."""

    speculative_config: SpeculativeConfig
    model_config: ModelConfig
    additional_config: Mapping[str, object]


@dataclass(frozen=True)
class ProposerSettings:
    """`--additional-config '{"mmspec": {"min_match": 3}}'`."""

    datastores: Sequence[str] = ()  # folders; beside those of MMSPEC_DATASTORE
    min_match: int = 2  # tokens that must agree before anything is copied
    max_places: int = 8  # of each source
    min_confidence: float = 0.3  # that the whole draft up to a token is accepted
    max_bytes: int = 2**30  # of all requests' indexes
    tokens_per_step: int = 8192  # of prompts, indexed in a step at most: some 4 us each

    @staticmethod
    def of(config: VllmConfig) -> "ProposerSettings":
        """Raises ConfigError for a name that is none of the above."""
        given = dict((getattr(config, "additional_config", None) or {}).get("mmspec", {}))
        names = [field.name for field in fields(ProposerSettings)]
        for name in given:
            if name not in names:
                hint = nearest(name, names)
                raise ConfigError(f"additional_config: unknown setting mmspec.{name}: {hint}")
        named = [one for one in os.environ.get(DATASTORE_VARIABLE, "").split(os.pathsep) if one]
        given["datastores"] = [*named, *given.get("datastores", ())]
        return ProposerSettings(**given)


class _Drafted(NamedTuple):
    """What drafts for a text, and what it drafted last."""

    copier: Copier
    length: int  # of the text then


class MmspecProposer:
    """For vLLM's `custom_proposer_backend`. Called by one thread."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        """Raises ConfigError, and DatastoreError for a datastore that is of another tokenizer."""
        self._settings = settings = ProposerSettings.of(vllm_config)
        self._limits = Limits(settings.max_places, settings.min_match)
        self._max_draft = vllm_config.speculative_config.num_speculative_tokens
        self._max_length = vllm_config.model_config.max_model_len
        self._stores = _opened(settings.datastores, vllm_config.model_config)
        self._texts = KnownTexts(
            max_tokens=settings.max_bytes // BYTES_PER_TOKEN, min_match=settings.min_match
        )
        self._learned = Calibration()
        self._drafts: dict[KnownText, _Drafted] = {}

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: Sequence[int] | np.ndarray | Tensor,
        token_ids_cpu: Tensor | np.ndarray,
        slot_mappings: object = None,
    ) -> list[list[int]]:
        """A chain of at most `num_speculative_tokens` tokens for each row; [] for none.

        `sampled_token_ids` are each row's new tokens, empty for one that is still being prefilled;
        `num_tokens_no_spec` (rows,) is the length of each row's text, those included, in
        `token_ids_cpu` (places, max_model_len). Rows may be others, or elsewhere, at each call.
        """
        rows = {
            place: np.asarray(token_ids_cpu[place, : int(num_tokens_no_spec[place])], np.int32)
            for place in range(len(sampled_token_ids))
            if int(num_tokens_no_spec[place]) > 0
        }
        texts = self._texts.of_step(rows)
        self._observe(texts, rows)
        self._index(texts, sampled_token_ids)
        for store in self._stores:
            store.refresh()
        return [
            self._draft(texts[place]) if sampled and place in texts else []
            for place, sampled in enumerate(sampled_token_ids)
        ]

    def _index(self, texts: Mapping[int, KnownText], sampled: Sequence[Sequence[int]]) -> None:
        """Rows that decode go first; a prompt may be indexed while it is being prefilled."""
        left = self._settings.tokens_per_step
        for place in sorted(texts, key=lambda place: not sampled[place]):
            left -= texts[place].catch_up(max(left, 0))

    def _draft(self, text: KnownText) -> list[int]:
        length = min(self._max_draft, self._max_length - text.num_tokens - 1)
        if length <= 0:
            return []
        before, limits = self._drafts.get(text), self._limits
        copier = before.copier if before else self._copier()
        found: list[Continuation] = text.continuations(
            limit=limits.max_places, length=length, min_match=limits.min_match
        )
        tail = text.tail(limits.max_match)
        for store in self._stores:
            found += store.current.continuations(
                tail,
                limit=limits.max_places,
                length=length,
                min_match=limits.min_match,
                max_match=limits.max_match,
            )
        # Of a wider tree the most probable path: what is beside it costs vLLM nothing.
        tree = copier.draft(tail[-1], found, 2 * length).best_chain()
        tree = tree.keep(range(min(tree.num_nodes, length + 1)))
        self._drafts[text] = _Drafted(copier, text.num_tokens)
        return list(tree.tokens[1:])

    def _observe(self, texts: Mapping[int, KnownText], rows: Mapping[int, Tokens]) -> None:
        """What became of the last drafts; those of texts that are forgotten go too."""
        self._drafts = {text: self._drafts[text] for text in self._texts if text in self._drafts}
        for place, text in texts.items():
            last = self._drafts.get(text)
            chosen = rows[place][last.length :].tolist() if last else []
            if last is not None and chosen:
                last.copier.observe(chosen)

    def _copier(self) -> Copier:
        return Copier("mmspec", min_confidence=self._settings.min_confidence, shared=self._learned)


def _opened(folders: Sequence[str], model: ModelConfig) -> list[OpenStore]:
    """The datastores, if they are of the model's tokenizer."""
    if not folders:
        return []
    tokenizer = AutoTokenizer.from_pretrained(
        model.tokenizer,
        revision=model.tokenizer_revision,
        trust_remote_code=model.trust_remote_code,
    )
    made, size = TextTokens(tokenizer).hash(), model.get_vocab_size()
    return [
        OpenStore(Datastore.open(folder, tokenizer=made, vocab_size=size)) for folder in folders
    ]
