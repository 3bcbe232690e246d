"""What a body says of sampling, and mmspec's own fields -> options of a request."""

from collections.abc import Mapping
from typing import Any

from mmspec.inputs import Passage
from mmspec.params import MAX_SEED
from mmspec.serving.errors import refused
from mmspec.serving.fields import Fields
from mmspec.serving.settings import ServerSettings

_SAME = {  # OpenAI's name and type -> ours
    "temperature": (float, "temperature"),
    "top_p": (float, "top_p"),
    "frequency_penalty": (float, "frequency_penalty"),
    "presence_penalty": (float, "presence_penalty"),
    "n": (int, "n"),
    # mmspec's own, named as elsewhere
    "top_k": (int, "top_k"),
    "min_p": (float, "min_p"),
    "repetition_penalty": (float, "repetition_penalty"),
    "min_tokens": (int, "min_new_tokens"),
    "ignore_eos": (bool, "ignore_eos"),
    "reuse": (bool, "reuse"),
}
_MAX_STOPS = 16
IGNORED = (  # of the account that asks, and of how a cloud keeps and routes it
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "prompt_cache_options",
)  # fmt: skip


def read_options(fields: Fields, settings: ServerSettings, namespace: str) -> dict[str, Any]:
    """Options that chats and completions share; those that the body does not name are left out.
    `namespace` is the client's own. Raises ApiError."""
    options: dict[str, Any] = {}
    for name, (kind, ours) in _SAME.items():
        value = fields.take(name, kind)
        if value is not None:
            options[ours] = value
    if options.get("n", 1) > settings.max_samples:
        raise refused("n", f"got {options['n']}; expected at most {settings.max_samples}")
    seed = fields.take("seed", int)
    if seed is not None:  # OpenAI's may be negative
        options["seed"] = seed % (MAX_SEED + 1)
    stop = fields.take_any("stop")
    if stop is not None:
        options["stop"] = _stops(stop)
    bias = fields.take("logit_bias", dict)
    if bias is not None:
        options["logit_bias"] = _bias(bias)
    speculate = fields.take_any("speculate")
    if speculate is not None:
        options["speculate"] = speculate
    passages = fields.take("passages", list)
    if passages:
        options["passages"] = [_passage(one) for one in passages]
    options["namespace"] = namespace + (fields.take("namespace", str) or "")
    fields.ignore(IGNORED)
    return options


def _stops(stop: object) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops):
        raise refused("stop", f"got {stop!r:.80}; expected a text or a list of texts")
    if len(stops) > _MAX_STOPS:
        raise refused("stop", f"got {len(stops)} texts; expected at most {_MAX_STOPS}")
    return tuple(stops)


def _bias(bias: Mapping[str, object]) -> dict[int, object]:
    try:
        return {int(token): value for token, value in bias.items()}
    except ValueError as error:
        raise refused(
            "logit_bias", f'got {bias!r:.80}; expected token ids: {{"50256": -100}}'
        ) from error


def _passage(given: object) -> str | Passage:
    if isinstance(given, str):
        return given
    fields = Fields(given)
    text, in_prompt = fields.take("text", str), fields.take("in_prompt", bool)
    if text is None:
        raise refused("passages", f'got {given!r:.80}; expected a text, or {{"text": "..."}}')
    passage = Passage(
        text,
        id=fields.take("id", str) or "",
        source=fields.take("source", str) or "",
        in_prompt=in_prompt is not False,
    )
    fields.finish()
    return passage
