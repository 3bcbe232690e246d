"""Config -> an Engine. With `build_drafters` and `build_target` it alone knows every concrete
class."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import cast, get_args

import torch
from transformers import PreTrainedModel

from mmspec.build_drafters import AnyDrafter, chosen_drafters
from mmspec.build_target import check_bits, check_decode_choices, probed_target
from mmspec.config import Config, load_config
from mmspec.controller import Controller
from mmspec.engine import Engine, Exactness, Overlaps
from mmspec.errors import ConfigError, check_one_of
from mmspec.inputs import ControlMode, InputLimits, InputProcessor
from mmspec.sampling import Choosing
from mmspec.target import Target
from mmspec.target.load import (
    Processor,
    adapter_base,
    load_model,
    load_processor,
    resolve_path,
    transformers_model,
)
from mmspec.target.own_modes import own_modes
from mmspec.target.probe import Shape
from mmspec.tree import TokenTree

logger = logging.getLogger(__name__)
_LEAST_KNOWN = 0.9  # of a vocabulary: what is padded to a round number is less than a tenth
_FIT: dict[Shape, Callable[[TokenTree], TokenTree]] = {
    "tree": lambda tree: tree,
    "chain": TokenTree.best_chain,
    "plain": lambda tree: TokenTree.root(tree.tokens[0]),
}


def load(
    model: str | Path | torch.nn.Module | None = None,
    processor: Processor | None = None,
    *,
    config: str | Path | Config | None = None,
    overrides: Sequence[str] | Mapping[str, object] = (),
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | None = None,
    drafter: str | AnyDrafter | Sequence[AnyDrafter] | None = None,
) -> Engine:
    """An Engine for a folder, a hub name, a bundled model's name ("tiny-vlm"), or a model and
    processor that are loaded already: a transformers model (quantised or spread over devices, as
    transformers loads it), or a peft model round one, whose active adapters hold.

    `drafter` is a name, several joined by "+" whose trees are verified together, "none", or
    drafter objects.
    `config` is a YAML file, the name of one of mmspec's own, or a Config, which is all there is
    then; `overrides` are dotted ("decode.max_nodes=32"). Raises ConfigError and ModelError.
    """
    settings = load_config(config, overrides)
    settings.model.dtype = str(dtype or settings.model.dtype).removeprefix("torch.")
    settings.model.device = str(device or settings.model.device)
    settings.model.device_map = device_map or settings.model.device_map
    # Before a large model is read: a misspelt name should not cost minutes.
    check_choices(settings)
    drafters = chosen_drafters(drafter, settings.drafter)
    if processor is not None and not isinstance(processor, get_args(Processor)):
        raise ConfigError(
            f"processor: got a {type(processor).__name__}; expected a transformers processor or "
            "tokenizer: derive yours from ProcessorMixin, or give prompts that are processed"
        )
    if model is not None and not isinstance(model, str | PathLike):
        loaded = transformers_model(model)
    else:
        where = asdict(settings.model)
        path = where["path"] = resolve_path(str(model) if model else settings.model.path)
        loaded = load_model(**where)
        for place in filter(None, (path, adapter_base(path))):
            processor = processor or load_processor(
                place,
                trust_remote_code=settings.model.trust_remote_code,
                revision=settings.model.revision,
            )
    with own_modes(loaded.device):
        engine = build_engine(settings, loaded, processor, drafters)
    known, size = engine.tokenizer and len(engine.tokenizer), engine.target.num_embeddings
    if known and known < _LEAST_KNOWN * size:
        logger.warning(
            "the tokenizer has %s entries, the model's vocabulary %s: is it the model's own?",
            f"{known:,}",
            f"{size:,}",
        )
    return engine


def build_engine(
    config: Config,
    model: PreTrainedModel,
    processor: Processor | None,
    drafters: Sequence[AnyDrafter],
    *,
    probed: tuple[Target, Shape] | None = None,
    controller: Controller | None = None,
) -> Engine:
    """The Engine of a loaded model. `probed` and `controller` are there where an earlier engine of
    the same model has found and learned them."""
    if probed is None:
        probed = probed_target(model, config.decode)
    target, shape = probed
    if config.decode.exactness == "bitwise":
        check_bits(target, config.decode)
    bounds = asdict(config.inputs)
    control_tokens = bounds.pop("control_tokens")
    inputs = processor and InputProcessor(processor, model.config, limits=InputLimits(**bounds))
    return Engine(
        target,
        inputs or None,
        drafters,
        verifier=config.decode.verifier,
        controller=controller or config.decode.controller,
        max_nodes=config.decode.max_nodes,
        max_rows=config.decode.max_rows,
        control_tokens=control_tokens,
        fit=_FIT[shape],
        # A chunk is scored as a path is.
        prefill_chunk=config.decode.prefill_chunk if shape != "plain" else None,
        prefix_bytes=config.cache.prefix_bytes if shape != "plain" else 0,
        feature_bytes=config.cache.feature_bytes,
        choosing=cast(Choosing, config.decode.choosing),
        exactness=cast(Exactness, config.decode.exactness),
        overlap=cast(Overlaps, config.decode.overlap),
        state_bytes=config.decode.state_bytes,
    )


def check_choices(config: Config) -> None:
    """Raises ConfigError for a value that is none of those it may be."""
    check_decode_choices(config.decode)
    check_one_of("inputs.control_tokens", config.inputs.control_tokens, get_args(ControlMode))
