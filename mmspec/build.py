"""Config -> objects: the only place that knows every concrete class."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast, get_args

import torch
from transformers import PreTrainedModel

from mmspec.attention.ladder import check_backend
from mmspec.config import (
    CompressedKVConfig,
    Config,
    DecodeConfig,
    DrafterConfig,
    DraftModelConfig,
    EagleConfig,
    GlideConfig,
    MedusaConfig,
    load_config,
)
from mmspec.controller import CONTROLLERS, Controller
from mmspec.drafters.base import Drafter, DrafterForTarget
from mmspec.drafters.cascade import Cascade
from mmspec.drafters.compressed_kv import CompressedKV
from mmspec.drafters.draft_model import DraftModel
from mmspec.drafters.draft_model.model import Images
from mmspec.drafters.eagle import Eagle
from mmspec.drafters.glide import Glide
from mmspec.drafters.growing.cape import BranchingName
from mmspec.drafters.growing.settings import Draw
from mmspec.drafters.layer_skip import LayerSkip
from mmspec.drafters.lookahead import Lookahead
from mmspec.drafters.medusa import Medusa
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.drafters.retrieval import Retrieval
from mmspec.engine import Engine, Exactness
from mmspec.errors import ConfigError, ModelError
from mmspec.inputs import ControlMode, InputLimits, InputProcessor
from mmspec.sampling import CHOOSING, Choosing
from mmspec.target import Target
from mmspec.target.attached import Attention
from mmspec.target.bits import differing_node, reason_against
from mmspec.target.graphs import CudaRecorder
from mmspec.target.linears import quick_linears
from mmspec.target.load import (
    Processor,
    adapter_base,
    load_model,
    load_processor,
    resolve_path,
    transformers_model,
)
from mmspec.target.probe import Shape, probe
from mmspec.target.quantised import check_weights
from mmspec.target.self_draft import draft_forward
from mmspec.target.tower import quick_blocks
from mmspec.tree import TokenTree
from mmspec.verify import VERIFIERS

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
        branching=cast(BranchingName, config.branching),
        cape_thresholds=config.cape_thresholds,
        cape_widths=config.cape_widths,
        draw=cast(Draw, config.draw),
        profile=config.profile,
        images=cast(Images, config.images),
        thin_keep=config.thin_keep,
        caption=config.caption,
    )


def build_compressed_kv(config: CompressedKVConfig) -> CompressedKV:
    """The self-drafter that the configuration names. Raises ConfigError."""
    settings = asdict(config)
    weights = check_weights(settings.pop("weights"), "drafter.compressed_kv.weights")
    forward = draft_forward(weights=weights, skipped=settings.pop("layers_skipped"))
    return CompressedKV(**settings, forward=forward)


def build_head(
    name: str, drafter: Callable[..., AnyDrafter], config: EagleConfig | GlideConfig | MedusaConfig
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
    apart = {"cascade", "compressed_kv", "eagle", "glide", "layer_skip", "lookahead", "medusa"}
    known = sorted(set(DRAFTERS) - apart)
    if name not in known:
        raise ConfigError(
            f"drafter.cascade.lower={name!r}: expected one of {', '.join(known)}, which is asked "
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
    "lookahead": lambda config: Lookahead(**asdict(config.lookahead)),
}
_ATTENTIONS: dict[str, Attention] = {"auto": "tree", "model": "model"}
_PACKED = {"auto": None, "always": True, "never": False}
_CUDA_GRAPHS = ("auto", "never")
_MANY_NODES = 128  # up to some such number a GPU reads weights for longer than it multiplies
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
    drafter: str | AnyDrafter | Sequence[AnyDrafter] | None = None,
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
    # Before a large model is read: a misspelt name should not cost minutes.
    check_choices(settings)
    drafters = chosen_drafters(drafter, settings.drafter)
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
    return build_engine(settings, loaded, processor, drafters)


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
    limits = InputLimits(
        max_image_pixels=config.inputs.max_image_pixels,
        max_image_bytes=config.inputs.max_image_bytes,
        max_audio_seconds=config.inputs.max_audio_seconds,
        max_request_pixels=config.inputs.max_request_pixels,
        max_request_bytes=config.inputs.max_request_bytes,
        allow_http=config.inputs.allow_http,
        allow_private_http=config.inputs.allow_private_http,
        allow_files=config.inputs.allow_files,
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
        # A chunk is scored as a path is.
        prefill_chunk=config.decode.prefill_chunk if shape != "plain" else None,
        prefix_bytes=config.cache.prefix_bytes if shape != "plain" else 0,
        feature_bytes=config.cache.feature_bytes,
        choosing=cast(Choosing, config.decode.choosing),
        exactness=cast(Exactness, config.decode.exactness),
    )


def chosen_drafters(
    drafter: str | AnyDrafter | Sequence[AnyDrafter] | None, config: DrafterConfig
) -> list[AnyDrafter]:
    """The drafters that a user names or brings; None: as `config` says."""
    if drafter is None or isinstance(drafter, str):
        return build_drafters(replace(config, name=drafter) if drafter else config)
    return list(cast(Sequence[AnyDrafter], drafter)) if isinstance(drafter, Sequence) else [drafter]


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


def check_choices(config: Config) -> None:
    """Raises ConfigError for a value that is none of those it may be."""
    _check_decode_choices(config.decode)
    _check_one_of("inputs.control_tokens", config.inputs.control_tokens, get_args(ControlMode))


def _check_decode_choices(config: DecodeConfig) -> None:
    for key, value, expected in (
        ("attention", config.attention, _ATTENTIONS),
        ("packed_weights", config.packed_weights, _PACKED),
        ("cuda_graphs", config.cuda_graphs, _CUDA_GRAPHS),
        ("verifier", config.verifier, VERIFIERS),
        ("controller", config.controller, CONTROLLERS),
        ("choosing", config.choosing, CHOOSING),
        ("exactness", config.exactness, get_args(Exactness)),
    ):
        _check_one_of(f"decode.{key}", value, expected)


def _check_one_of(key: str, value: str, expected: Iterable[str]) -> None:
    if value not in expected:
        raise ConfigError(f"{key}={value!r}: expected one of {', '.join(expected)}")


def probed_target(model: PreTrainedModel, config: DecodeConfig) -> tuple[Target, Shape]:
    """The model as a target, and what it scores. Raises ConfigError for a value that is none of
    those it may be."""
    _check_decode_choices(config)
    linears = quick_linears(model, packed=_PACKED[config.packed_weights])
    backend = check_backend(config.attention_backend)
    if not config.probe:  # nothing was measured: the model's own attention
        return Target(model, linears=linears), "tree"
    blocks = quick_blocks(model, copied=_PACKED[config.packed_weights] is not False)
    attention = _ATTENTIONS[config.attention]
    target, report = probe(
        model, attention=attention, backend=backend, linears=linears, blocks=blocks
    )
    if report.shape != "tree":
        logger.warning(
            "%s does not score token trees as it decodes; drafts are cut to %s",
            type(model).__name__,
            "one path" if report.shape == "chain" else "nothing: plain decoding",
        )
    if report.attention_failure:
        logger.warning(
            "%s decodes otherwise through mmspec's attention (%s); its own is used, which is "
            "slower over a long context; decode.attention=model says so from the start",
            type(model).__name__,
            report.attention_failure,
        )
    is_on_gpu = target.device.type == "cuda" and target.attachments.attention == "tree"
    if is_on_gpu and config.cuda_graphs == "auto" and target.state_kinds:
        logger.warning(
            "%s keeps running states; its steps are not recorded as CUDA graphs",
            type(model).__name__,
        )
    elif is_on_gpu and config.cuda_graphs == "auto":
        target.use_graphs(CudaRecorder(target.device))
    return target, report.shape


def check_bits(target: Target, config: DecodeConfig) -> None:
    """Raises where bitwise mode cannot be kept: ConfigError for a setting, ModelError for a model
    that gives a token other bits beside other tokens."""
    name = type(target.model).__name__
    if target.attachments.attention != "tree":
        raise ConfigError(
            "decode.exactness=bitwise got a model that is scored by its own attention; expected "
            "mmspec's: decode.probe=true and decode.attention=auto, and a model that agrees with it"
        )
    # What torch.cuda.tunable asks, which a torch built for CPUs alone does not have.
    is_tuned = getattr(torch._C, "_cuda_tunableop_is_enabled", lambda: False)
    if target.device.type == "cuda" and is_tuned():
        raise ConfigError(
            "decode.exactness=bitwise got PYTORCH_TUNABLEOP_ENABLED=1, with which products are "
            "computed by whatever was quickest in this process; expected it to be off"
        )
    rows, nodes = config.max_rows, config.max_nodes + 1
    if rows * nodes > _MANY_NODES:
        logger.warning(
            "bitwise mode computes %d rows of %d nodes at every step, however few there are: set "
            "decode.max_rows and decode.max_nodes as small as they may be",
            rows,
            nodes,
        )
    why = reason_against(target)
    found = why or differing_node(target, rows=rows, nodes=nodes)
    if found is not None:
        raise ModelError(
            f"{name} {found}; decode.exactness=bitwise is not possible here, standard is"
        )
