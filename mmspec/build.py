"""Config -> objects: the only place that knows every concrete class."""

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel

from mmspec.config import Config, DrafterConfig, load_config
from mmspec.controller import Controller
from mmspec.drafters.base import Drafter
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.engine import Engine
from mmspec.errors import ConfigError
from mmspec.inputs import ControlMode, InputLimits, InputProcessor
from mmspec.target import Target
from mmspec.target.load import (
    Processor,
    adapter_base,
    load_model,
    load_processor,
    resolve_path,
    transformers_model,
)
from mmspec.target.probe import Shape, probe
from mmspec.tree import TokenTree

logger = logging.getLogger(__name__)

DRAFTERS: dict[str, Callable[[DrafterConfig], Drafter]] = {
    "prompt_lookup": lambda config: PromptLookup(**asdict(config.prompt_lookup)),
}
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
    dtype: str | None = None,
    device: str | None = None,
    device_map: str | None = None,
    drafter: str | Drafter | Sequence[Drafter] | None = None,
) -> Engine:
    """An Engine for a folder, a hub name, a bundled model's name ("tiny-vlm"), or a model and
    processor that are loaded already: a transformers model (quantised or spread over devices, as
    transformers loads it), or a peft model round one, whose active adapters hold.

    `drafter` is a name, several joined by "+" whose trees are verified together, "none", or
    drafter objects.
    `config` is a YAML file or the name of one of mmspec's own; `overrides` are dotted
    ("decode.max_nodes=32"). Raises ConfigError and ModelError.
    """
    settings = deepcopy(config) if isinstance(config, Config) else load_config(config, overrides)
    settings.model.dtype = dtype or settings.model.dtype
    settings.model.device = device or settings.model.device
    settings.model.device_map = device_map or settings.model.device_map
    if isinstance(model, torch.nn.Module):
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
    drafters = chosen_drafters(drafter, settings.drafter)
    return build_engine(settings, loaded, processor, drafters)


def build_engine(
    config: Config,
    model: PreTrainedModel,
    processor: Processor | None,
    drafters: Sequence[Drafter],
    *,
    probed: tuple[Target, Shape] | None = None,
    controller: Controller | None = None,
) -> Engine:
    """The Engine of a loaded model. `probed` and `controller` are there where an earlier engine of
    the same model has found and learned them."""
    if probed is None:
        probed = probed_target(model) if config.decode.probe else (Target(model), "tree")
    target, shape = probed
    limits = InputLimits(
        max_image_pixels=config.inputs.max_image_pixels,
        max_image_bytes=config.inputs.max_image_bytes,
        allow_http=config.inputs.allow_http,
    )
    inputs = processor and InputProcessor(processor, model.config, limits=limits)
    return Engine(
        target,
        inputs or None,
        drafters,
        verifier=config.decode.verifier,
        controller=controller or config.decode.controller,
        max_nodes=config.decode.max_nodes,
        max_rows=config.decode.max_rows,
        control_tokens=cast(ControlMode, config.inputs.control_tokens),
        fit=_FIT[shape],
    )


def chosen_drafters(
    drafter: str | Drafter | Sequence[Drafter] | None, config: DrafterConfig
) -> list[Drafter]:
    """The drafters that a user names or brings; None: as `config` says."""
    if drafter is None or isinstance(drafter, str):
        return build_drafters(replace(config, name=drafter) if drafter else config)
    return list(cast(Sequence[Drafter], drafter)) if isinstance(drafter, Sequence) else [drafter]


def build_drafters(config: DrafterConfig) -> list[Drafter]:
    """The drafters that `config.name` names, "none" being no drafter. Raises ConfigError for a
    name that is not there, or there twice."""
    names = [] if config.name == "none" else config.name.split("+")
    for name in names:
        if name not in DRAFTERS or names.count(name) > 1:
            known = ", ".join(sorted(DRAFTERS))
            raise ConfigError(
                f"drafter.name={config.name!r}: expected none, or one or several (joined by +) of "
                f"{known}"
            )
    return [DRAFTERS[name](config) for name in names]


def probed_target(model: PreTrainedModel) -> tuple[Target, Shape]:
    target, report = probe(model)
    if report.shape != "tree":
        logger.warning(
            "%s does not score token trees as it decodes; drafts are cut to %s",
            type(model).__name__,
            "one path" if report.shape == "chain" else "nothing: plain decoding",
        )
    return target, report.shape
