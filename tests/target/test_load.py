"""Loading: what is there is loaded, what is not or is not safe is refused with a reason."""

import json
import re
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from inputs.text_families import build_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

import mmspec
from mmspec.errors import ConfigError, ModelError
from mmspec.sweep import architectures
from mmspec.sweep.shrink import tiny_config
from mmspec.target import load
from mmspec.target.load import load_model, load_processor, resolve_path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama in float32, with a tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    FAMILIES["llama"].build(torch.float32).save_pretrained(folder)
    build_tokenizer("qwen").save_pretrained(folder)
    return folder


def refusal(path: Path | str, **options: object) -> str:
    with pytest.raises(ModelError) as raised:
        load_model(str(path), **options)  # type: ignore[arg-type]
    message = str(raised.value)
    assert message.startswith(f"{path}: "), message
    return message


# LAW


def test_a_saved_model_is_loaded_as_it_was(saved: Path) -> None:
    model = load_model(str(saved), device="cpu")
    assert not model.training
    assert model.dtype == torch.float32
    expected = FAMILIES["llama"].build(torch.float32).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_a_dtype_that_is_asked_for_is_given(saved: Path, dtype: str) -> None:
    assert load_model(str(saved), dtype=dtype, device="cpu").dtype == getattr(torch, dtype)


def test_vision_language_models_are_loaded_as_such(tmp_path: Path) -> None:
    FAMILIES["llava"].build(torch.float32).save_pretrained(tmp_path)
    assert type(load_model(str(tmp_path), device="cpu")).__name__ == "LlavaForConditionalGeneration"


@pytest.mark.parametrize("dtype", ["float8", "half", "torch.float32", ""])
def test_an_unknown_dtype_is_refused_before_anything_is_read(dtype: str) -> None:
    with pytest.raises(ConfigError, match=f"dtype={re.escape(repr(dtype))}: expected one of auto"):
        load_model("/no/such/folder", dtype=dtype)


def test_a_dtype_and_a_device_may_be_torch_s_own() -> None:
    engine = mmspec.load("nano-vlm", dtype=torch.float64, device=torch.device("cpu"))
    assert (engine.target.dtype, engine.target.device.type) == (torch.float64, "cpu")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="has the device")
@pytest.mark.parametrize("device", ["mps", "hpu"])
def test_a_device_that_is_not_here_is_told_in_a_sentence(saved: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=f"'{device}': not a device of this machine") as told:
        load_model(str(saved), device=device)
    assert len(str(told.value)) < 300


def test_an_unknown_device_is_refused(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"device='gpu': not a device .* expected auto, cpu"):
        load_model(str(saved), device="gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_device_that_is_not_there_is_refused(saved: Path) -> None:
    with pytest.raises(ConfigError, match="device='cuda'"):
        load_model(str(saved), device="cuda")


def test_no_such_folder_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path / "nowhere")


def test_a_hub_name_that_cannot_be_reached_is_refused() -> None:
    refusal("someone/no-such-model")


def test_an_empty_folder_holds_no_model(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert "holds no model" in message
    assert "found nothing" in message


def test_a_folder_without_a_model_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a model", encoding="utf-8")
    message = refusal(tmp_path)
    assert "expected config.json and *.safetensors" in message
    assert "notes.txt" in message


def test_a_config_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    refusal(tmp_path)


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such"}', encoding="utf-8")
    assert "no_such" in refusal(tmp_path)


def test_a_config_without_weights_is_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((saved / "config.json").read_text("utf-8"), "utf-8")
    refusal(tmp_path)


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "a.pt"])
def test_pickled_weights_are_refused_and_never_opened(
    saved: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "config.json").write_text((saved / "config.json").read_text("utf-8"), "utf-8")
    exploded = tmp_path / "exploded"
    torch.save({"weight": Bomb(exploded)}, tmp_path / name)
    message = refusal(tmp_path)
    assert name in message
    assert "pickled weights" in message
    assert "safetensors" in message
    assert not exploded.exists()


def test_pickled_weights_beside_safetensors_are_not_read(saved: Path, tmp_path: Path) -> None:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    exploded = tmp_path / "exploded"
    torch.save({"weight": Bomb(exploded)}, tmp_path / "pytorch_model.bin")
    assert load_model(str(tmp_path), device="cpu").dtype == torch.float32
    assert not exploded.exists()


def test_remote_code_is_refused_unless_asked_for(tmp_path: Path) -> None:
    config = {
        "model_type": "its_own",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    ran = tmp_path / "ran"
    (tmp_path / "code.py").write_text(f"open({str(ran)!r}, 'w')\n", encoding="utf-8")
    message = refusal(tmp_path)
    assert "model.trust_remote_code=true" in message
    assert not ran.exists()


def test_a_saved_tokenizer_is_loaded(saved: Path) -> None:
    processor = load_processor(str(saved))
    assert isinstance(processor, PreTrainedTokenizerBase)
    assert processor("total").input_ids == build_tokenizer("qwen")("total").input_ids


@pytest.mark.parametrize("num_padded", [20, 200])
def test_a_tokenizer_of_too_few_tokens_is_told(
    num_padded: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be another model's: its ids are in the vocabulary, and mean something else there."""
    tokenizer = build_tokenizer("qwen")
    config = tiny_config("llama")
    config.vocab_size = len(tokenizer) + num_padded
    mmspec.load(AutoModelForCausalLM.from_config(config), tokenizer)
    told = f"the tokenizer has {len(tokenizer)} entries"
    assert (told in caplog.text) == (num_padded > config.vocab_size / 10)


def test_a_folder_without_a_processor_has_none(tmp_path: Path) -> None:
    FAMILIES["llama"].build(torch.float32).save_pretrained(tmp_path)
    assert load_processor(str(tmp_path)) is None


def test_a_broken_processor_is_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((saved / "config.json").read_text("utf-8"), "utf-8")
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="processor cannot be loaded"):
        load_processor(str(tmp_path))


def test_a_folder_comes_before_a_bundled_name_before_a_hub_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled, here = tmp_path / "bundled", tmp_path / "here"
    (bundled / "tiny").mkdir(parents=True)
    (bundled / "tiny" / "config.json").touch()
    (bundled / "unfinished").mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(load, "BUNDLED", bundled)
    assert resolve_path("tiny") == str(bundled / "tiny")
    assert resolve_path("unfinished") == "unfinished", "no config.json, no bundled model"
    assert resolve_path("someone/model") == "someone/model"
    (here / "tiny").mkdir()
    assert resolve_path("tiny") == "tiny"


def test_one_file_of_a_model_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match=f"a file; expected the folder .*: {tmp_path}"):
        resolve_path(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("path", ["/no/such/folder", "./models/mine", "a/b/c", "two words"])
def test_what_can_be_no_hub_name_is_refused_as_a_missing_folder(path: str) -> None:
    with pytest.raises(ModelError, match="no such folder, and no hub name either"):
        resolve_path(path)


def test_no_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a folder"):
        resolve_path("")


@pytest.mark.parametrize("model_type", ["qwen2_5_omni", "qwen3_omni_moe"])
def test_of_several_models_in_one_the_part_that_writes_is_loaded(
    model_type: str, tmp_path: Path
) -> None:
    """Given as an object, and out of the folder of the whole."""
    config = tiny_config(model_type)
    (architecture,) = architectures([model_type])
    whole = architecture.model_class._from_config(config, dtype=torch.float32).eval()
    prompt = torch.tensor([[1, 5, 9, 14, 5, 9]])
    engine = mmspec.load(whole)
    assert engine.target.model is whole.thinker
    expected = whole.thinker.generate(prompt, max_new_tokens=6, do_sample=False)[0, 6:].tolist()
    options = {"max_new_tokens": 6, "temperature": 0.0}
    assert engine.generate({"input_ids": prompt}, **options).tokens == tuple(expected)
    whole.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), dtype="float32", device="cpu")
    assert type(loaded) is type(whole.thinker)
    for name, value in whole.thinker.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_several_models_in_one_of_which_none_writes_are_refused() -> None:
    class Speaker(PreTrainedModel):
        config_class = LlamaConfig

    with pytest.raises(ModelError, match="Speaker is several models in one"):
        mmspec.load(Speaker(LlamaConfig()))
