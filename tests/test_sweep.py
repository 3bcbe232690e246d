"""The sweep over transformers' architectures: a handful by default, all of them with --slow."""

import io
import re
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
import transformers
from rich.console import Console

from mmspec.errors import InputError
from mmspec.sweep import (
    Architecture,
    SweepLimits,
    Trial,
    architectures,
    markdown,
    rich_table,
    sweep,
)
from mmspec.sweep import trial as trials
from mmspec.sweep.build import build
from mmspec.sweep.shrink import tiny_config
from mmspec.sweep.sizes import VOCAB_SIZE
from mmspec.sweep.texts import text_tokens


def one(model_type: str) -> Trial:
    (architecture,) = architectures([model_type])
    return trials.try_architecture(architecture)


def test_every_decoder_of_transformers_is_on_the_list() -> None:
    names = {architecture.model_type for architecture in architectures()}
    assert {"llama", "qwen2_vl", "qwen2_audio", "voxtral", "deepseek_v3", "mamba"} <= names
    assert len(names) > 200
    with pytest.raises(InputError, match="'lama'"):
        architectures(["lama"])


@pytest.mark.parametrize(
    ("model_type", "shape", "attention"),
    [
        ("llama4_text", "tree", "tree"),  # chunked attention, layers without positions
        ("deepseek_v3", "tree", "model"),  # latent keys, values of another size
        ("deepseek_v32", "tree", "model"),  # layers that choose which tokens they see
        ("gemma3n_text", "tree", "tree"),  # layers that share keys
        ("gpt_neo", "plain", "model"),  # counts columns, not positions
    ],
)
def test_a_family_is_decoded_as_transformers_does(
    model_type: str, shape: str, attention: str
) -> None:
    trial = one(model_type)
    assert (trial.verdict, trial.as_generate) == ("same", "same"), trial.reason
    assert (trial.shape, trial.attention, trial.cuts) == (shape, attention, "")
    assert trial.num_different >= 3
    assert (trial.accepted > 0) == (shape != "plain")


@pytest.mark.parametrize(
    ("model_type", "kinds"),
    [
        ("qwen2_5_omni", {"image", "audio", "video"}),
        pytest.param(  # its ear insists on float32
            "gemma4", {"image", "audio", "video"}, marks=pytest.mark.slow
        ),
        ("phi4_multimodal", {"image", "audio"}),
        ("shieldgemma2", {"image"}),
        ("ernie4_5_vl_moe", {"image", "video"}),  # other experts for media than for text
    ],
)
def test_what_a_model_sees_and_hears_is_found_by_asking_it(
    model_type: str, kinds: set[str]
) -> None:
    trial = one(model_type)
    assert trial.verdict == "same", trial.reason
    if model_type == "gemma4" and transformers.__version__.startswith("5.17"):
        kinds = kinds - {"video"}  # no form of the sweep's fits there
    together = {"together"} if len(kinds) > 1 else set()
    assert {kind for kind, found in trial.media.items() if found == "same"} == kinds | together


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("roformer", "takes no position_ids"),
        ("recurrent_gemma", r"outside of transformers' cache|\(recurrent\)"),  # now, and in 5.17
        ("minimax", "does not decode a text by itself"),
        ("pp_formulanet", "is an encoder-decoder model"),  # and has no embeddings to ask for
    ],
)
def test_a_family_that_cannot_be_decoded_is_refused_with_its_reason(
    model_type: str, reason: str
) -> None:
    trial = one(model_type)
    assert trial.verdict == "refused"
    assert re.search(reason, trial.reason)


def test_a_model_whose_tokens_see_later_ones_is_not_cut() -> None:
    """BERT as it is loaded: no decoder. Its prompt is read as a whole, and says the same."""
    (architecture,) = architectures(["bert"])
    model = build(architecture, torch.float64)
    model.config.is_decoder = False
    for layer in model.bert.encoder.layer:
        layer.attention.self.is_causal = False
    trial = trials.try_model(model, Trial("bert", "BertLMHeadModel", "text", verdict="failed"))
    assert trial.verdict == "same", trial.reason
    assert "two pieces" in trial.cuts


def test_a_wrong_text_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep can fail: a model that says another thing in generate, or in a batch."""

    def other(model: object, prompt: dict[str, torch.Tensor]) -> tuple[int, ...]:
        return (0,) * trials.NEW_TOKENS

    monkeypatch.setattr(trials, "_generated", other)
    trial = one("olmo2")
    assert trial.verdict == "differs"
    assert trial.reason.startswith("greedy, as generate, row 0: first difference at token 0")


def test_a_family_that_dies_costs_no_other() -> None:
    first, second = architectures(["olmo2", "llama"])
    found = list(sweep([replace(first, class_name="Nothing"), second]))
    assert [trial.verdict for trial in found] == ["unbuilt", "same"]
    (late,) = sweep([second], limits=SweepLimits(seconds=0.0))
    assert (late.verdict, late.reason) == ("failed", "took longer than 0 s")


def test_a_tiny_config_has_every_kind_of_layer() -> None:
    config = tiny_config("gemma3_text")
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    assert config.vocab_size == VOCAB_SIZE
    assert max(text_tokens(40, 1)) < 100


def test_a_reason_with_brackets_is_shown_as_it_is() -> None:
    trial = Trial("x", "X", "text", "failed", "got [batch, seq], expected [/INST]")
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(rich_table([trial]))
    assert "got [batch, seq], expected [/INST]" in console.export_text()


def test_the_table_has_a_line_a_family() -> None:
    made = [
        Trial("llama", "LlamaForCausalLM", "text", "same", shape="tree", attention="tree"),
        Trial("bart", "BartForCausalLM", "text", "refused", "Bart takes no position_ids | x"),
        Trial("llava", "Llava", "image", "same", shape="tree", attention="model",
              media={"image": "same"}),
    ]  # fmt: skip
    table = markdown({"5.0.0": made})
    assert "| llama | tree | mmspec's |" in table
    assert "position_ids \\| x" in table
    assert sum(line.startswith(("| llama", "| bart", "| llava")) for line in table.split("\n")) == 3


def test_what_was_not_tried_of_several_media_in_one_prompt_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether the model takes one kind a prompt, or the prompt that was made of them is none."""
    trial = Trial("x", "X", "image", "same", shape="tree", as_generate="same", num_different=9)
    one_kind = [{"input_ids": torch.zeros(1, 2, dtype=torch.long)}]
    monkeypatch.setattr(trials, "_media_prompts", lambda model, kind: one_kind)
    monkeypatch.setattr(trials, "_compared", lambda *_: trial)
    monkeypatch.setattr(trials, "_generated", lambda model, prompt: prompt["pixels"])
    found = trials._with_media(trial, ("image", "audio"), *[cast(Any, None)] * 3)
    assert found.media["image"] == found.media["audio"] == "same"
    assert "several kinds of media in one prompt fail in generate: KeyError" in markdown(
        {"5": [found]}
    )


@pytest.mark.slow
@pytest.mark.parametrize("architecture", architectures(), ids=lambda a: a.model_type)
def test_no_family_says_another_thing(architecture: Architecture) -> None:
    (trial,) = sweep([architecture])
    assert trial.verdict != "differs", trial.reason
