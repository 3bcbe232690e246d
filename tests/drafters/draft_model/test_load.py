"""A draft model by configuration, by name, as an object, and on the command line."""

import json
from pathlib import Path

import pytest
import torch
from draft_models import byte_level, text_only
from typer.testing import CliRunner

import mmspec
from mmspec.build_drafters import load_draft_model
from mmspec.cli import app
from mmspec.config import DraftModelConfig, load_config
from mmspec.drafters.draft_model import DraftModel
from mmspec.drafters.draft_model.drafter import BoundDraftModel
from mmspec.errors import ConfigError, ModelError
from mmspec.target import Target

PATH = "drafter.draft_model.path"


def test_a_name_and_a_path_are_enough() -> None:
    engine = mmspec.load("tiny-vlm", drafter="draft_model", overrides=[f"{PATH}=tiny-vlm"])
    result = engine.generate("Hello", max_new_tokens=24, temperature=0.0, speculate=True)
    plain = engine.generate("Hello", max_new_tokens=24, temperature=0.0, speculate=False)
    assert result.tokens == plain.tokens
    assert result.stats.by_drafter["draft_model"].accepted > 0


def test_the_yaml_runs_as_it_is() -> None:
    engine = mmspec.load("tiny-vlm", config="draft_model")
    assert [drafter.name for drafter in engine.drafters] == ["draft_model"]
    result = engine.generate("Hello", max_new_tokens=12, speculate=True)
    assert result.stats.by_drafter["draft_model"].proposed > 0


def test_every_parameter_of_the_configuration_reaches_the_drafter() -> None:
    config = DraftModelConfig(
        path="tiny-vlm",
        dtype="float64",
        max_depth=3,
        top_k=2,
        min_confidence=0.3,
        draw="sample",
        profile=[2, 1],
        images="thin",
        thin_keep=0.5,
    )
    draft = load_draft_model(config)
    assert draft.model.dtype == torch.float64
    trees = draft.trees
    assert (trees.max_depth, trees.top_k, trees.min_confidence) == (3, 2, 0.3)
    assert (trees.draw, trees.profile, draft.images, draft.thin_keep) == (
        "sample", (2, 1), "thin", 0.5,
    )  # fmt: skip
    assert load_draft_model(DraftModelConfig(path="tiny-vlm")).images == "give"
    assert load_config("draft_model").drafter.draft_model.path == "tiny-vlm"


def test_a_text_only_folder_drafts_for_a_model_that_sees(tmp_path: Path) -> None:
    engine = mmspec.load("tiny-vlm", drafter="none")
    assert engine.tokenizer is not None
    text_only(engine.target.model).save_pretrained(tmp_path)
    engine.tokenizer.save_pretrained(tmp_path)
    engine = mmspec.load(
        "tiny-vlm",
        drafter="prompt_lookup+draft_model",
        overrides={PATH: str(tmp_path), "drafter.draft_model.top_k": 1},
    )
    (draft,) = (d for d in engine.drafters if isinstance(d, BoundDraftModel))
    assert draft.settings.images == "omit"
    result = engine.generate("Hello", max_new_tokens=16, temperature=0.0, speculate=True)
    assert result.stats.by_drafter["draft_model"].acceptance > 0.9


def test_one_object_serves_several_engines() -> None:
    target = mmspec.load("tiny-vlm", drafter="none").target
    draft = DraftModel(Target(target.model))
    engines = [mmspec.load("tiny-vlm", drafter=draft) for _ in range(2)]
    first, second = (engine.drafters[0] for engine in engines)
    assert isinstance(first, BoundDraftModel) and isinstance(second, BoundDraftModel)
    assert first is not second and first.cache is not second.cache


def test_a_users_mistake_says_how_to_mend_it() -> None:
    with pytest.raises(ConfigError, match=r"drafter\.draft_model\.path='': expected a folder"):
        mmspec.load("tiny-vlm", drafter="draft_model")
    with pytest.raises(ModelError, match="no such folder"):
        mmspec.load("tiny-vlm", drafter="draft_model", overrides=[f"{PATH}=./not/here"])
    with pytest.raises(ConfigError, match="max_dept"):
        load_config(None, ["drafter.draft_model.max_dept=3"])
    other = DraftModel(mmspec.load("tiny-vlm").target, byte_level(), draw="sample")
    with pytest.raises(ConfigError, match="draw='sample': the draft model has another tokenizer"):
        mmspec.load("tiny-vlm", drafter=other)


def test_the_command_line_takes_a_draft_model() -> None:
    arguments = ["generate", "tiny-vlm", "Hello", "--drafter", "draft_model", "--json"]
    options = ["--set", f"{PATH}=tiny-vlm", "--set", "decode.controller=fixed"]
    run = CliRunner().invoke(app, [*arguments, *options, "--max-new-tokens", "16", "--seed", "1"])
    assert run.exit_code == 0, run.output
    values = json.loads(run.stdout.splitlines()[-1])
    assert "draft_model" in json.dumps(values)
