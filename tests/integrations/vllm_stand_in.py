"""A server with vLLM's interface to a custom proposer: rows that come, go and move; a model that
says what a script says, and takes of a draft what agrees with it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch


def vllm_config(
    *,
    num_speculative_tokens: int = 8,
    max_model_len: int = 512,
    vocab_size: int = 1000,
    tokenizer: str = "",
    **settings: object,
) -> Any:
    """What a proposer reads of a VllmConfig; `settings` are those under "mmspec"."""
    return SimpleNamespace(
        speculative_config=SimpleNamespace(num_speculative_tokens=num_speculative_tokens),
        model_config=SimpleNamespace(
            max_model_len=max_model_len,
            tokenizer=tokenizer,
            tokenizer_revision=None,
            trust_remote_code=False,
            get_vocab_size=lambda: vocab_size,
        ),
        additional_config={"mmspec": settings} if settings else {},
    )


@dataclass
class Job:
    """One request: its prompt, and the answer that the model will give."""

    prompt: Sequence[int]
    answer: Sequence[int]
    chosen: list[int] = field(default_factory=list)
    draft: list[int] = field(default_factory=list)
    num_prefilled: int = 0
    num_steps: int = 0  # that chose tokens
    drafted: list[list[int]] = field(default_factory=list)  # what was proposed, step by step
    lengths: list[int] = field(default_factory=list)  # of the text, at each of these

    @property
    def text(self) -> list[int]:
        return [*self.prompt, *self.chosen]

    @property
    def is_done(self) -> bool:
        return len(self.chosen) == len(self.answer)

    def step(self, chunk: int) -> list[int]:
        """The tokens that a step chooses: [] while the prompt is being read, else what agrees of
        the draft and one more."""
        if self.num_prefilled < len(self.prompt):
            self.num_prefilled = min(self.num_prefilled + chunk, len(self.prompt))
            if self.num_prefilled < len(self.prompt):
                return []
        rest = self.answer[len(self.chosen) :]
        agreeing = 0
        while agreeing < len(self.draft) and self.draft[agreeing] == rest[agreeing]:
            agreeing += 1
            if agreeing == len(rest):
                break
        new = list(rest[: agreeing + 1])
        self.chosen += new
        self.num_steps += 1
        return new


class StandIn:
    """Serves jobs with at most `places` rows. Between steps rows that ended make place for others,
    and rows are shuffled as a scheduler may."""

    def __init__(
        self,
        proposer: Any,
        *,
        places: int,
        chunk: int = 64,
        max_model_len: int = 512,
        rng: Random | None = None,
        as_numpy: bool = False,
    ) -> None:
        self._proposer = proposer
        self._places = places
        self._chunk = chunk
        self._rng = rng
        self._tokens = torch.zeros((places, max_model_len), dtype=torch.int32)
        self._as_numpy = as_numpy
        self.calls = 0

    def serve(self, jobs: Sequence[Job]) -> None:
        waiting, rows = list(jobs), list[Job]()
        while waiting or rows:
            while waiting and len(rows) < self._places:
                rows.append(waiting.pop(0))
            if self._rng is not None:
                self._rng.shuffle(rows)
            sampled = [job.step(self._chunk) for job in rows]
            for place, job in enumerate(rows):
                self._tokens[place] = 7  # what an earlier request left behind its end
                self._tokens[place, : len(job.text)] = torch.tensor(job.text, dtype=torch.int32)
            # A row that has ended is still there in the step that ends it.
            lengths = np.array([len(job.text) for job in rows], np.int32)
            table = self._tokens.numpy() if self._as_numpy else self._tokens
            self.calls += 1
            drafts = self._proposer.propose(
                sampled_token_ids=sampled,
                num_tokens_no_spec=lengths,
                token_ids_cpu=table,
                slot_mappings=None,
            )
            assert len(drafts) == len(rows)
            for job, draft, new in zip(rows, drafts, sampled, strict=True):
                assert new or not draft, "a row that is being prefilled got a draft"
                job.draft = draft
                job.drafted.append(draft)
                job.lengths.append(len(job.text))
            rows = [job for job in rows if not job.is_done]
