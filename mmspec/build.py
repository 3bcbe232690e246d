"""Config -> objects: the only place that knows every concrete class."""

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import cast

from transformers import PreTrainedModel

from mmspec.config import Config, DrafterConfig, load_config
from mmspec.drafters.base import Drafter
from mmspec.drafters.none import NoDrafter
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.engine import Engine
from mmspec.errors import ConfigError
from mmspec.inputs import ControlMode, InputLimits, InputProcessor
from mmspec.target import Target
from mmspec.target.load import Processor, load_model, load_processor, resolve_path
from mmspec.target.probe import Shape, probe
from mmspec.tree import TokenTree

logger = logging.getLogger(__name__)

DRAFTERS: dict[str, Callable[[DrafterConfig], Drafter]] = {
    "none": lambda config: NoDrafter(),
    "prompt_lookup": lambda config: PromptLookup(**asdict(config.prompt_lookup)),
}
_FIT: dict[Shape, Callable[[TokenTree], TokenTree]] = {
    "tree": lambda tree: tree,
    "chain": TokenTree.best_chain,
    "plain": lambda tree: TokenTree.root(tree.tokens[0]),
}


def load(
    model: str | Path | PreTrainedModel | None = None,
    processor: Processor | None = None,
    *,
    config: str | Path | Config | None = None,
    overrides: Sequence[str] | Mapping[str, object] = (),
    dtype: str | None = None,
    device: str | None = None,
    device_map: str | None = None,
    drafter: str | Drafter | None = None,
) -> Engine:
    """An Engine for a folder, a hub name, a bundled model's name ("tiny-vlm"), or a model and
    processor that are loaded already.

    `config` is a YAML file or the name of one of mmspec's own; `overrides` are dotted
    ("decode.max_nodes=32"). Raises ConfigError and ModelError.
    """
    settings = deepcopy(config) if isinstance(config, Config) else load_config(config, overrides)
    settings.model.dtype = dtype or settings.model.dtype
    settings.model.device = device or settings.model.device
    settings.model.device_map = device_map or settings.model.device_map
    if isinstance(model, PreTrainedModel):
        loaded = model
    else:
        where = asdict(settings.model)
        path = where["path"] = resolve_path(str(model) if model else settings.model.path)
        loaded = load_model(**where)
        processor = processor or load_processor(
            path,
            trust_remote_code=settings.model.trust_remote_code,
            revision=settings.model.revision,
        )
    if isinstance(drafter, str):
        settings.drafter.name = drafter
        drafter = None
    return _build(settings, loaded, processor, drafter)


def _build(
    config: Config, model: PreTrainedModel, processor: Processor | None, drafter: Drafter | None
) -> Engine:
    target, shape = _probed(model) if config.decode.probe else (Target(model), "tree")
    limits = InputLimits(
        max_image_pixels=config.inputs.max_image_pixels,
        max_image_bytes=config.inputs.max_image_bytes,
        allow_http=config.inputs.allow_http,
    )
    inputs = processor and InputProcessor(processor, model.config, limits=limits)
    return Engine(
        target,
        inputs or None,
        drafter or build_drafter(config.drafter),
        verifier=config.decode.verifier,
        max_nodes=config.decode.max_nodes,
        max_rows=config.decode.max_rows,
        control_tokens=cast(ControlMode, config.inputs.control_tokens),
        fit=_FIT[shape],
        # A chunk is scored as a path is.
        prefill_chunk=config.decode.prefill_chunk if shape != "plain" else None,
        prefix_bytes=config.cache.prefix_bytes if shape != "plain" else 0,
        feature_bytes=config.cache.feature_bytes,
    )


def build_drafter(config: DrafterConfig) -> Drafter:
    """Raises ConfigError for a name that is not there."""
    if config.name not in DRAFTERS:
        raise ConfigError(
            f"drafter.name={config.name!r}: expected one of {', '.join(sorted(DRAFTERS))}"
        )
    return DRAFTERS[config.name](config)


def _probed(model: PreTrainedModel) -> tuple[Target, Shape]:
    target, report = probe(model)
    if report.shape != "tree":
        logger.warning(
            "%s does not score token trees as it decodes; drafts are cut to %s",
            type(model).__name__,
            "one path" if report.shape == "chain" else "nothing: plain decoding",
        )
    return target, report.shape
