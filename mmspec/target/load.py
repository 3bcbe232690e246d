"""A folder or hub name -> a transformers model and its processor."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TypeAlias

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)
from transformers.utils import is_peft_available

from mmspec.errors import ConfigError, MissingExtraError, ModelError
from mmspec.target.bundles import writing_config, writing_part
from mmspec.target.context import with_context
from mmspec.target.stacking import stack_weights

Processor: TypeAlias = ProcessorMixin | PreTrainedTokenizerBase
logger = logging.getLogger(__name__)

_DTYPES = ("auto", "float64", "float32", "bfloat16", "float16")
_HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w.-]+)?")
BUNDLED = Path(__file__).parent.parent / "bundled"


def resolve_path(path: str) -> str:
    """A folder that exists, then a bundled model's name ("tiny-vlm"), then a hub name."""
    if not path:
        raise ConfigError("no model: expected a folder, a bundled model's name or a hub name")
    if Path(path).is_file():
        folder = Path(path).parent
        raise ModelError(f"{path}: a file; expected the folder that it lies in: {folder}")
    if Path(path).exists():
        return path
    if (BUNDLED / path / "config.json").is_file():
        return str(BUNDLED / path)
    if not _HUB_NAME.fullmatch(path):
        bundled = ", ".join(bundled_names())
        raise ModelError(
            f"{path}: no such folder, and no hub name either; expected a folder with config.json, "
            f"owner/name on the hub, or a bundled model ({bundled or 'none is here'})"
        )
    return path


def bundled_names() -> list[str]:
    """The names of the models that mmspec brings."""
    return sorted(file.parent.name for file in BUNDLED.glob("*/config.json"))


def load_model(
    path: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    context: int | None = None,
) -> PreTrainedModel:
    """Loads safetensors weights, never pickles; remote code only if asked for. Of a folder that
    holds an adapter, the base model that it names, with the adapter in it (peft).

    `device="auto"` is the GPU where there is one; there weights that are read together are put side
    by side (see `stacking`). `context` is a number of tokens, also more than the model was made for
    (see `with_context`). Raises ModelError, ConfigError, or
    MissingExtraError for an adapter without peft.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype={dtype!r}: expected one of {', '.join(_DTYPES)}")
    place = _device(device)
    base = adapter_base(path)
    source = path if base is None else base
    _refuse_pickle(source)
    with _explained(source):
        config = AutoConfig.from_pretrained(
            source, trust_remote_code=trust_remote_code, revision=revision
        )
    whole = config
    config = writing_config(config)
    auto = auto_class(config)
    if context is not None:
        config = with_context(config, context)
    with _explained(source):
        model = auto.from_pretrained(
            source,
            config=None if context is None and config is whole else config,
            dtype=dtype,
            device_map=device_map,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            revision=revision,
            use_safetensors=True,
        )
    # Quantised weights may be where they belong already, and some cannot be moved.
    is_there = getattr(model, "is_quantized", False) and model.device.type == place.type
    if device_map is None and not is_there:
        model.to(place)
        if place.type == "cuda":
            stack_weights(model)
    if base is not None:
        with _explained(path):
            model.load_adapter(path)
    return model.eval()


def adapter_base(path: str) -> str | None:
    """The base model's path that a folder with an adapter, and no model of its own, names."""
    folder = Path(path)
    if (folder / "config.json").is_file() or not (folder / "adapter_config.json").is_file():
        return None
    if not is_peft_available():
        raise MissingExtraError(
            f"{path}: an adapter needs peft, which is not installed: pip install 'mmspec[lora]'"
        )
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"{path}: expected adapter_model.safetensors beside adapter_config.json; save it with "
            "save_pretrained(..., safe_serialization=True)"
        )
    with _explained(path):
        written = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = written.get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"{path}: adapter_config.json names no base model; load that one yourself, put the "
            "adapter on it with peft, and give mmspec.load the model"
        )
    return resolve_path(base)


def transformers_model(model: object) -> PreTrainedModel:
    """A loaded transformers model as it is, of several in one the part that writes; of a peft model
    the one within, whose layers hold the adapters: what peft activates or disables, also later,
    holds for it; of what torch.compile returns the model that it was given.

    Raises ModelError for anything else, and for prompt-learning adapters (prefix and prompt
    tuning), which live outside of those layers.
    """
    within = getattr(model, "_orig_mod", None)
    if isinstance(within, torch.nn.Module):
        logger.warning(
            "the model that torch.compile was given is decoded as it is: mmspec does not use what "
            "was compiled of it"
        )
        return transformers_model(within)
    if isinstance(model, PreTrainedModel):
        return writing_part(model)
    base = getattr(model, "get_base_model", lambda: None)()
    if not isinstance(base, PreTrainedModel):
        got = (
            f"the class {model.__name__}"
            if isinstance(model, type)
            else f"a {type(model).__name__}"
        )
        raise ModelError(
            f"got {got}; expected a path, a hub name, a transformers PreTrainedModel or a peft "
            "model round one"
        )
    adapter = getattr(model, "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False):
        raise ModelError(
            f"the active adapter is of type {getattr(adapter, 'peft_type', 'prompt learning')}, "
            "whose virtual tokens only peft's own generate puts in; expected LoRA or another "
            "adapter of the model's layers"
        )
    return writing_part(base)


def load_processor(
    path: str, *, trust_remote_code: bool = False, revision: str | None = None
) -> Processor | None:
    """The folder's processor, or its tokenizer, or None where it has neither."""
    errors: list[Exception] = []
    for auto in (AutoProcessor, AutoTokenizer):
        try:
            return auto.from_pretrained(
                path, trust_remote_code=trust_remote_code, revision=revision
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            errors.append(error)
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "processor_config.json")
    if Path(path).is_dir() and not any((Path(path) / name).exists() for name in names):
        return None
    raise ModelError(f"{path}: its processor cannot be loaded: {errors[0]}") from errors[0]


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, ImportError) as error:
        why = str(error).partition("\n")[0].partition(". ")[0]  # torch adds all that it knows
        raise ConfigError(
            f"device={device!r}: not a device of this machine ({why}); expected auto, cpu, "
            "cuda[:N] with a torch that has CUDA, or mps"
        ) from error
    return place


def auto_class(config: PreTrainedConfig) -> type[_BaseAutoModelClass]:
    """What of transformers loads the whole model, its encoders included."""
    kind = type(config)
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or _has_vision_code(config):
        return AutoModelForImageTextToText
    if kind in MODEL_FOR_MULTIMODAL_LM_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForMultimodalLM
    return AutoModelForCausalLM


def _has_vision_code(config: PreTrainedConfig) -> bool:
    auto_map = getattr(config, "auto_map", None) or {}
    return "AutoModelForImageTextToText" in auto_map


def _refuse_pickle(path: str) -> None:
    folder = Path(path)
    if not folder.is_dir():
        return
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{path}: this folder holds no model: expected config.json and *.safetensors, found "
            f"{sorted(entry.name for entry in folder.iterdir())[:8] or 'nothing'}"
        )
    pickles = [*folder.glob("pytorch_model*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
    if pickles and not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"{path}: got pickled weights ({pickles[0].name}), which can run any code when they "
            "are opened; expected *.safetensors. Convert them where you trust them: "
            "from_pretrained(...).save_pretrained(...)"
        )


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """transformers' loading errors as a ModelError that begins with the path."""
    try:
        yield
    except json.JSONDecodeError as error:
        raise ModelError(f"{path}: config.json is not JSON: {error}") from error
    except (OSError, ValueError, KeyError, ImportError) as error:
        message = str(error)
        if "trust_remote_code" in message:
            raise ModelError(
                f"{path}: this model brings its own code, which is not run unless you ask for it; "
                "read it, then allow it: --set model.trust_remote_code=true (as overrides= of "
                "mmspec.load)"
            ) from error
        near = get_close_matches(path, bundled_names(), n=1)
        hint = f" (Did you mean the bundled model {near[0]}?)" if near else ""
        raise ModelError(f"{path}: cannot be loaded: {message}{hint}") from error
