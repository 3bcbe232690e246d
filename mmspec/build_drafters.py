"""Config -> drafters."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import cast

from mmspec.config import (
    CompressedKVConfig,
    DFlashConfig,
    DrafterConfig,
    DraftModelConfig,
    EagleConfig,
    GlideConfig,
    MedusaConfig,
)
from mmspec.drafters.base import Drafter, DrafterForTarget
from mmspec.drafters.cascade import Cascade
from mmspec.drafters.compressed_kv import CompressedKV
from mmspec.drafters.dflash import DFlash
from mmspec.drafters.draft_model import DraftModel
from mmspec.drafters.eagle import Eagle
from mmspec.drafters.glide import Glide
from mmspec.drafters.layer_skip import LayerSkip
from mmspec.drafters.lookahead import Lookahead
from mmspec.drafters.medusa import Medusa
from mmspec.drafters.mtp import Mtp
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.drafters.retrieval import Retrieval
from mmspec.drafters.token_recycling import TokenRecycling
from mmspec.errors import ConfigError
from mmspec.target.load import load_model, load_processor, resolve_path
from mmspec.target.quantised import check_weights
from mmspec.target.self_draft import draft_forward

AnyDrafter = Drafter | DrafterForTarget
_LOWER = ("draft_model", "prompt_lookup", "retrieval")  # need no states of the target


def chosen_drafters(
    drafter: str | AnyDrafter | Sequence[AnyDrafter] | None, config: DrafterConfig
) -> list[AnyDrafter]:
    """The drafters that a user names or brings; None: as `config` says."""
    if drafter is None or isinstance(drafter, str):
        return build_drafters(replace(config, name=drafter) if drafter else config)
    several = drafter if isinstance(drafter, Sequence) else [drafter]
    given = list(cast(Sequence[AnyDrafter], several))
    if not all(hasattr(one, "name") and not isinstance(one, type) for one in given):
        raise ConfigError(
            f"drafter={drafter!r:.80}: expected a name, several joined by +, or drafter objects"
        )
    return given


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


def load_draft_model(config: DraftModelConfig) -> DraftModel:
    """The draft model that the configuration names. Raises ConfigError and ModelError."""
    if not config.path:
        raise ConfigError(
            "drafter.draft_model.path='': expected a folder, a hub name or a bundled model's name: "
            'overrides=["drafter.draft_model.path=..."], or --set drafter.draft_model.path=...'
        )
    settings = asdict(config)
    path = resolve_path(settings.pop("path"))
    kept = {name: settings.pop(name) for name in ("trust_remote_code", "revision")}
    model = load_model(path, dtype=settings.pop("dtype"), device=settings.pop("device"), **kept)
    return DraftModel(model, load_processor(path, **kept), **settings)


def build_compressed_kv(config: CompressedKVConfig) -> CompressedKV:
    """The self-drafter that the configuration names. Raises ConfigError."""
    settings = asdict(config)
    weights = check_weights(settings.pop("weights"), "drafter.compressed_kv.weights")
    forward = draft_forward(weights=weights, skipped=settings.pop("layers_skipped"))
    return CompressedKV(**settings, forward=forward)


def build_head(
    name: str,
    drafter: Callable[..., AnyDrafter],
    config: DFlashConfig | EagleConfig | GlideConfig | MedusaConfig,
) -> AnyDrafter:
    """The drafter of the trained head that the configuration names. Raises ConfigError and
    ModelError."""
    settings = asdict(config)
    path = settings.pop("path")
    if not path:
        raise ConfigError(
            f"drafter.{name}.path='': expected a head's folder or hub name: "
            f'overrides=["drafter.{name}.path=..."], or --set drafter.{name}.path=...'
        )
    return drafter(path, **settings)


def build_cascade(config: DrafterConfig) -> Cascade:
    """The cascade of a configuration. Raises ConfigError for a lower drafter that is not there."""
    name = config.cascade.lower
    if name not in _LOWER:
        raise ConfigError(
            f"drafter.cascade.lower={name!r}: expected one of {', '.join(_LOWER)}, which is asked "
            "before the target's own view"
        )
    settings = asdict(config.cascade)
    del settings["lower"]
    return Cascade(DRAFTERS[name](config), build_compressed_kv(config.compressed_kv), **settings)


DRAFTERS: dict[str, Callable[[DrafterConfig], AnyDrafter]] = {
    "prompt_lookup": lambda config: PromptLookup(**asdict(config.prompt_lookup)),
    "retrieval": lambda config: Retrieval(**asdict(config.retrieval)),
    "draft_model": lambda config: load_draft_model(config.draft_model),
    "compressed_kv": lambda config: build_compressed_kv(config.compressed_kv),
    "layer_skip": lambda config: LayerSkip(**asdict(config.layer_skip)),
    "eagle": lambda config: build_head("eagle", Eagle, config.eagle),
    "glide": lambda config: build_head("glide", Glide, config.glide),
    "cascade": build_cascade,
    "medusa": lambda config: build_head("medusa", Medusa, config.medusa),
    "mtp": lambda config: Mtp(**asdict(config.mtp)),
    "dflash": lambda config: build_head("dflash", DFlash, config.dflash),
    "lookahead": lambda config: Lookahead(**asdict(config.lookahead)),
    "token_recycling": lambda config: TokenRecycling(**asdict(config.token_recycling)),
}
