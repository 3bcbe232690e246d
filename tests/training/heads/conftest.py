"""An engine to train heads for, the smallest bundled model, which sees; and a tiny target with a
batch of its own."""

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES
from head_texts import LENGTHS, SEQ, VOCAB

import mmspec
from mmspec.engine import Engine
from mmspec.target import Target
from mmspec.training.heads.batch import Batch, LayerKV


@pytest.fixture(scope="session")
def nano() -> Engine:
    return mmspec.load("nano-vlm", drafter="none")


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(FAMILIES["llama"].build(torch.float32))


@pytest.fixture(scope="module")
def batch(target: Target) -> Batch:
    """Two texts, of which parts are learned; with all that any head reads."""
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(3, VOCAB, (2, SEQ), generator=draw)
    is_token = torch.arange(SEQ) < torch.tensor(LENGTHS).unsqueeze(1)
    ids = ids * is_token
    texts = [row[:length].tolist() for row, length in zip(ids, LENGTHS, strict=True)]
    taps = {0, 1, 2}
    rows = target.read(texts, taps=taps)
    hidden = {
        tap: torch.stack([F.pad(row[tap], (0, 0, 0, SEQ - len(row[tap]))) for row in rows])
        for tap in taps
    }
    with torch.no_grad():
        cached = target.model(ids, use_cache=True).past_key_values.layers[1]
    learned = torch.tensor([[0, 0, 1, 1, 0, 1, 1, 1, 1], [0, 1, 1, 0, 1, 1, 1, 0, 0]]).bool()
    kv = LayerKV(cached.keys, cached.values)
    return Batch(ids, learned, hidden, kv)
