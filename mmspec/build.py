"""Config -> objects: the only place that knows every concrete class."""

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import cast

from transformers import PreTrainedModel

from mmspec.config import Config, DrafterConfig, DraftModelConfig, load_config
from mmspec.drafters.base import Drafter, DrafterForTarget
from mmspec.drafters.draft_model import DraftModel
from mmspec.drafters.draft_model.model import Draw, Images
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.engine import Engine
from mmspec.errors import ConfigError
from mmspec.inputs import ControlMode, InputLimits, InputProcessor
from mmspec.target import Target
from mmspec.target.load import Processor, load_model, load_processor, resolve_path
from mmspec.target.probe import Shape, probe
from mmspec.tree import TokenTree

logger = logging.getLogger(__name__)

AnyDrafter = Drafter | DrafterForTarget


def load_draft_model(config: DraftModelConfig) -> DraftModel:
    """The draft model that the configuration names. Raises ConfigError and ModelError."""
    if not config.path:
        raise ConfigError(
            "drafter.draft_model.path='': expected a folder, a hub name or a bundled model's name: "
            'overrides=["drafter.draft_model.path=..."], or --set drafter.draft_model.path=...'
        )
    path = resolve_path(config.path)
    model = load_model(
        path,
        dtype=config.dtype,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
        revision=config.revision,
    )
    processor = load_processor(
        path, trust_remote_code=config.trust_remote_code, revision=config.revision
    )
    return DraftModel(
        model,
        processor,
        max_depth=config.max_depth,
        top_k=config.top_k,
        min_confidence=config.min_confidence,
        draw=cast(Draw, config.draw),
        profile=config.profile,
        images=cast(Images, config.images),
        thin_keep=config.thin_keep,
        caption=config.caption,
    )


DRAFTERS: dict[str, Callable[[DrafterConfig], AnyDrafter]] = {
    "prompt_lookup": lambda config: PromptLookup(**asdict(config.prompt_lookup)),
    "draft_model": lambda config: load_draft_model(config.draft_model),
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
    drafter: str | AnyDrafter | Sequence[AnyDrafter] | None = None,
) -> Engine:
    """An Engine for a folder, a hub name, a bundled model's name ("tiny-vlm"), or a model and
    processor that are loaded already.

    `drafter` is a name, several joined by "+" whose trees are verified together, "none", or
    drafter objects.
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
    drafters: list[AnyDrafter]
    if drafter is None:
        drafters = build_drafters(settings.drafter)
    elif isinstance(drafter, Sequence):
        drafters = [*cast(Sequence[AnyDrafter], drafter)]
    else:
        drafters = [drafter]
    return _build(settings, loaded, processor, drafters)


def _build(
    config: Config,
    model: PreTrainedModel,
    processor: Processor | None,
    drafters: Sequence[AnyDrafter],
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
        drafters,
        verifier=config.decode.verifier,
        controller=config.decode.controller,
        max_nodes=config.decode.max_nodes,
        max_rows=config.decode.max_rows,
        control_tokens=cast(ControlMode, config.inputs.control_tokens),
        fit=_FIT[shape],
    )


def build_drafters(config: DrafterConfig) -> list[AnyDrafter]:
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


def _probed(model: PreTrainedModel) -> tuple[Target, Shape]:
    target, report = probe(model)
    if report.shape != "tree":
        logger.warning(
            "%s does not score token trees as it decodes; drafts are cut to %s",
            type(model).__name__,
            "one path" if report.shape == "chain" else "nothing: plain decoding",
        )
    return target, report.shape
