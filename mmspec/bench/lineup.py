"""Methods -> runners: ours on one load of the model, transformers' on another of their own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmspec.bench.methods import PLAIN, Method, standard_methods
from mmspec.bench.ours import Ours
from mmspec.bench.peers import Peer
from mmspec.bench.run import Runner
from mmspec.build import load
from mmspec.config import load_config
from mmspec.engine import Engine
from mmspec.errors import ConfigError, MmspecError, ModelError
from mmspec.inputs import InputProcessor
from mmspec.target.load import load_model, load_processor, resolve_path


@dataclass(frozen=True)
class Lineup:
    """What is measured, loaded."""

    runners: dict[str, Runner]
    refused: dict[str, str]  # method -> why it could not be built
    plain: Runner
    inputs: InputProcessor
    max_positions: int | None
    dtype: str


def build_lineup(
    model: str,
    methods: Sequence[Method],
    *,
    config: str | None = None,
    overrides: Sequence[str] = (),
    dtype: str | None = None,
    device: str | None = None,
    is_required: Callable[[Method], bool] = lambda method: True,
    prefix_bytes: int = 0,
) -> Lineup:
    """Loads the model twice: once for all methods of ours, once for all of transformers', whose
    generate leaves a model as it found it.

    With `prefix_bytes` ours prefill a prompt once for all of them, and keep so much of what they
    have read.

    A method of ours that is not `is_required` and cannot be built is `refused`, with its reason.
    Raises ConfigError, ModelError.
    """
    settings = load_config(config, overrides).model
    settings.dtype, settings.device = dtype or settings.dtype, device or settings.device
    where = {**vars(settings), "path": resolve_path(model)}
    ours = load_model(**where)
    processor = load_processor(
        where["path"], trust_remote_code=settings.trust_remote_code, revision=settings.revision
    )

    def engine(extra: Sequence[str]) -> Engine:
        if any(override.startswith("model.") for override in extra):
            raise ConfigError(
                f"method with {' '.join(extra)}: all methods decode the same load of the model; "
                "set model.* for all of them with --set"
            )
        return load(ours, processor, config=config, overrides=[*overrides, *extra])

    (plain_method,) = [m for m in standard_methods((), peers=False) if m.name == PLAIN]
    shared: list[str] = []
    if prefix_bytes:  # of the prompts alone: an answer must not draft for the next run's
        shared = [f"cache.prefix_bytes={prefix_bytes}", "drafter.retrieval.generated_bytes=0"]
    base = engine([*plain_method.overrides, *shared])
    if base.inputs is None:
        raise ModelError(f"{model}: no tokenizer found, and a benchmark's prompts are texts")
    plain = Ours(plain_method, base, reuse=prefix_bytes > 0)
    runners: dict[str, Runner] = {}
    refused: dict[str, str] = {}
    peer: PreTrainedModel | None = None
    for method in methods:
        if method.name == PLAIN:
            runners[method.name] = plain
        elif method.library == "mmspec":
            try:
                made = engine([*method.overrides, *shared])
                made.share_cache(base)
                runners[method.name] = Ours(method, made, reuse=prefix_bytes > 0)
            except MmspecError as error:
                if is_required(method):
                    raise
                refused[method.name] = str(error)
        else:
            peer = peer or load_model(**where)
            assistance = _assistance(method, where, peer, base.inputs.tokenizer)
            runners[method.name] = Peer(method, peer, assistance)
    return Lineup(
        runners, refused, plain, base.inputs, base.target.max_positions, str(ours.dtype)[6:]
    )


def _assistance(
    method: Method,
    where: dict[str, Any],
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, object]:
    """What generate needs for assisted generation: the draft model, and both tokenizers where the
    vocabularies differ in size, which is how it tells one tokenizer from another."""
    if method.draft_model is None:
        return {}
    where = {**where, "path": resolve_path(method.draft_model), "revision": None}
    model = load_model(**where)
    if _vocab_size(model) == _vocab_size(target):
        return {"assistant_model": model}
    processor = load_processor(where["path"], trust_remote_code=where["trust_remote_code"])
    own = getattr(processor, "tokenizer", processor)
    return {"assistant_model": model, "tokenizer": tokenizer, "assistant_tokenizer": own}


def _vocab_size(model: PreTrainedModel) -> int:
    return model.config.get_text_config(decoder=True).vocab_size
