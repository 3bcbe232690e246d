"""Shelf: datastores of what a scenario's requests say, which grow and shrink while it is played."""

import random
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from draft_models import letters
from families.vision import FIRST_MEDIA_TOKEN
from stores import write_store

from mmspec.engine import Engine
from mmspec.indexing import PromptedReader, collect_keys
from mmspec.inputs import from_inputs
from mmspec.retrieval.datastore import Datastore
from mmspec.retrieval.writer import DatastoreWriter
from mmspec.state import Prompt

from .cases import Inputs


class Shelf:
    """`prompts` are what its texts were said to; they are asked again by the scenario's cases.
    `most`: tokens of each, where the model has few positions."""

    def __init__(
        self, folder: Path, draw: random.Random, plain: Engine, *, most: int | None
    ) -> None:
        self.folder, self.prompts, self.most = folder / "store", list[Inputs](), most
        self._draw, self._plain = random.Random(draw.random()), plain
        self._asked: dict[str, Prompt] = {}
        self._lock = threading.Lock()

    @property
    def is_there(self) -> bool:
        return self.folder.exists()

    def fill(self, prompts: Sequence[Inputs], *, is_dense: bool) -> None:
        """What is said to `prompts`, and the same with some tokens replaced."""
        self.prompts += prompts
        for prompt in prompts:
            said = self._plain.generate(
                prompt, temperature=0.0, max_new_tokens=16, ignore_eos=True
            ).tokens
            spoilt = [t if self._draw.random() < 0.8 else self._draw.randrange(3, 90) for t in said]
            self._add(prompt, [list(said), spoilt], behind_prompt=not is_dense)
        if is_dense:
            target = self._plain.target
            reader = PromptedReader(target, lambda name: self._asked[name.id], tap=target.last_tap)
            collect_keys(self.folder, target, reader)

    def change(self) -> None:
        """As another process does it meanwhile."""
        with self._lock:
            names = list(self._asked)
            if self._draw.random() < 0.6 or len(names) < 2:
                text = [self._draw.randrange(3, 90) for _ in range(self._draw.randint(1, 30))]
                self._add(self._draw.choice(self.prompts), [text])
                return
            with DatastoreWriter.open(self.folder) as writer:
                gone = self._draw.choice(names)
                writer.delete([gone])
                del self._asked[gone]
                if self._draw.random() < 0.3:
                    writer.purge()

    def _add(
        self, prompt: Inputs, texts: Sequence[list[int]], *, behind_prompt: bool = False
    ) -> None:
        ids = prompt["input_ids"][0].tolist()
        lead = [t if t < FIRST_MEDIA_TOKEN else -1 for t in ids[-4:]] if behind_prompt else []
        generation = Datastore.open(self.folder).manifest.generation if self.is_there else 0
        config: Any = self._plain.target.model.config
        assert isinstance(prompt, Mapping)
        for number in range(len(texts)):
            self._asked[f"d{generation}-{number}"] = from_inputs(prompt, config)
        write_store(
            self.folder,
            [[*lead, *text] for text in texts],
            tokenizer=letters(),
            vocab_size=self._plain.target.vocab_size,
        )
