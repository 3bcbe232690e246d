"""Config and a loaded model -> the target, and what it scores as it decodes."""

import logging
from typing import get_args

import torch
from transformers import PreTrainedModel

from mmspec.attention.ladder import check_backend
from mmspec.config import DecodeConfig
from mmspec.controller import CONTROLLERS
from mmspec.engine import OVERLAP, Exactness
from mmspec.errors import ConfigError, MmspecError, ModelError, check_one_of
from mmspec.kernels import raise_if_lost, shown
from mmspec.sampling import CHOOSING
from mmspec.target import Target
from mmspec.target.attached import Attention
from mmspec.target.bits import differing_node, reason_against
from mmspec.target.families import refuse_unsupported
from mmspec.target.graphs import CudaRecorder
from mmspec.target.linears import quick_linears
from mmspec.target.probe import Shape, probe
from mmspec.target.tower import quick_blocks
from mmspec.verify import VERIFIERS

logger = logging.getLogger(__name__)

_ATTENTIONS: dict[str, Attention] = {"auto": "tree", "model": "model"}
_PACKED = {"auto": None, "always": True, "never": False}
_AUTO_OR_NEVER = ("auto", "never")
_MANY_NODES = 128  # up to some such number a GPU reads weights for longer than it multiplies


def check_decode_choices(config: DecodeConfig) -> None:
    for key, value, expected in (
        ("attention", config.attention, _ATTENTIONS),
        ("packed_weights", config.packed_weights, _PACKED),
        ("cuda_graphs", config.cuda_graphs, _AUTO_OR_NEVER),
        ("early_begin", config.early_begin, _AUTO_OR_NEVER),
        ("verifier", config.verifier, VERIFIERS),
        ("controller", config.controller, CONTROLLERS),
        ("choosing", config.choosing, CHOOSING),
        ("overlap", config.overlap, OVERLAP),
        ("exactness", config.exactness, get_args(Exactness)),
    ):
        check_one_of(f"decode.{key}", value, expected)


def probed_target(model: PreTrainedModel, config: DecodeConfig) -> tuple[Target, Shape]:
    """The model as a target, and what it scores. Raises ConfigError for a value that is none of
    those it may be, ModelError for a model that cannot be decoded."""
    check_decode_choices(config)
    refuse_unsupported(model)  # before its parts are looked for
    linears = quick_linears(model, packed=_PACKED[config.packed_weights])
    backend = check_backend(config.attention_backend)
    if not config.probe:  # nothing was measured: the model's own attention
        return Target(model, linears=linears), "tree"
    blocks = quick_blocks(
        model,
        copied=_PACKED[config.packed_weights] is not False,
        begins_early=config.early_begin == "auto",
    )
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
    if is_on_gpu and config.cuda_graphs == "auto":
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
    try:
        found = reason_against(target) or differing_node(target, rows=rows, nodes=nodes)
    except MmspecError:
        raise
    except Exception as error:  # whatever a compiler, or a model's forward, may raise
        raise_if_lost(error, target.device)
        found = f"fails in bitwise mode ({shown(error)})"
    if found is not None:
        raise ModelError(
            f"{name} {found}; decode.exactness=bitwise is not possible here, standard is"
        )
