"""A configured backend of tree attention: it is what scores, and scores as the model does."""

from typing import Any

import interpreted
import pytest
import torch
from families import FAMILIES
from torch import Tensor

import mmspec
from mmspec.attention.triton_tree import TritonTree
from mmspec.errors import ConfigError
from mmspec.requests import Request
from mmspec.state import Prompt
from mmspec.target import Target
from mmspec.target.probe import probe

assert interpreted


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each call of the Triton backend."""
    calls: list[str] = []
    own = TritonTree.attend

    def counted(self: TritonTree, *args: Any, **kwargs: Any) -> Tensor:
        calls.append("call")
        return own(self, *args, **kwargs)

    monkeypatch.setattr(TritonTree, "attend", counted)
    return calls


# The plain one; windows and a softcap; sinks.
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_a_model_decodes_through_the_kernel_as_by_itself(name: str, launches: list[str]) -> None:
    model = FAMILIES[name].build(torch.float32)
    target, report = probe(model, backend="triton")
    assert (report.shape, report.attention, report.attention_failure) == ("tree", "tree", "")
    assert target.attachments.backend == "triton"
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    assert launches and len(launches) % layers == 0, "every layer of every score call"


def test_a_variant_of_the_target_keeps_the_backend() -> None:
    target = Target(FAMILIES["llama"].build(torch.float32), attention="tree", backend="triton")
    assert target.variant().attachments.backend == "triton"


def test_drafts_change_nothing_through_the_kernel(launches: list[str]) -> None:
    overrides = ["decode.attention_backend=triton", "decode.controller=fixed"]
    model = FAMILIES["llama"].build(torch.float32)
    engine = mmspec.load(model, overrides=overrides)
    loaded = len(launches)
    prompt = Prompt(torch.tensor([7, 8, 9] * 6))
    drafted, plain = (
        engine.generate(Request(prompt, max_new_tokens=5, speculate=on), ignore_eos=True)
        for on in (True, False)
    )
    assert drafted.tokens == plain.tokens
    assert len(launches) > loaded


def test_a_backend_that_is_not_there_is_refused_at_load() -> None:
    model = FAMILIES["llama"].build(torch.float32)
    with pytest.raises(ConfigError, match=r"attention_backend='flash_attn_3' needs the package"):
        mmspec.load(model, overrides=["decode.attention_backend=flash_attn_3"])
