"""Method: who decodes, and with which settings. All are fixed before anything is measured."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import yaml

from mmspec.build_drafters import DRAFTERS
from mmspec.errors import ConfigError
from mmspec.requests import FIELD_NAMES

TRANSFORMERS, PLAIN = "transformers", "mmspec plain"
LOOKUP, ASSISTED = "transformers lookup", "transformers assisted"
LOOKUP_TOKENS = (5, 10, 20)
_FIXED = ("prompt", "seed", "temperature", "do_sample", "max_new_tokens")


@dataclass(frozen=True)
class Method:
    """One row of the table, the same for all tasks."""

    name: str
    library: Literal["mmspec", "transformers"]
    overrides: tuple[str, ...] = ()  # mmspec: of its configuration
    options: Mapping[str, object] = field(default_factory=dict)
    # mmspec: fields of Request; transformers: arguments of generate
    draft_model: str | None = None  # transformers: generate's assistant_model, by folder or name

    @property
    def is_lookup(self) -> bool:
        """transformers' prompt lookup, of which the best number of tokens counts."""
        return self.library == "transformers" and "prompt_lookup_num_tokens" in self.options


def standard_methods(
    drafters: Sequence[str] = (), *, draft_model: str | None = None, peers: bool = True
) -> list[Method]:
    """transformers generate, its prompt lookup and, with a `draft_model`, its assisted generation;
    our plain decoding, and ours with each of `drafters` (none named: each there is)."""
    methods = []
    if peers:
        methods.append(Method(TRANSFORMERS, "transformers"))
        methods += [
            Method(f"{LOOKUP} {n}", "transformers", options={"prompt_lookup_num_tokens": n})
            for n in LOOKUP_TOKENS
        ]
        if draft_model is not None:
            methods.append(Method(ASSISTED, "transformers", draft_model=draft_model))
    methods.append(Method(PLAIN, "mmspec", ("drafter.name=none",), {"speculate": False}))
    for name in drafters or [name for name in DRAFTERS if name != "none"]:
        if name not in DRAFTERS:
            raise ConfigError(f"drafter {name!r}: expected one of {', '.join(sorted(DRAFTERS))}")
        methods.append(Method(f"mmspec {name}", "mmspec", (f"drafter.name={name}",)))
    return methods


def parse_method(text: str) -> Method:
    """Ours, written as "NAME: key=value ...": dotted keys override the configuration, others are
    fields of a request, such as "wide: drafter.name=prompt_lookup decode.max_nodes=48".

    Raises ConfigError.
    """
    name, settings = _split(text, "wide: drafter.name=prompt_lookup decode.max_nodes=48")
    overrides = tuple(f"{key}={value}" for key, value in settings if "." in key)
    options = {key: _value(value) for key, value in settings if "." not in key}
    for key in options:
        if key not in FIELD_NAMES or key in _FIXED:
            raise ConfigError(
                f"method {name!r}: {key!r} is no dotted key of the configuration and no field of "
                f"a request that a method may set (the same for all are {', '.join(_FIXED)})"
            )
    return Method(f"mmspec {name}", "mmspec", overrides, options)


def parse_peer(text: str) -> Method:
    """transformers' own, written as "NAME: argument=value ...", arguments of its generate, such as
    "lookup 10, 3-grams: prompt_lookup_num_tokens=10 max_matching_ngram_size=3". Of these
    `assistant_model` is a folder or a name. Raises ConfigError."""
    example = "lookup 3-grams: prompt_lookup_num_tokens=10 max_matching_ngram_size=3"
    name, settings = _split(text, example)
    options = {key: _value(value) for key, value in settings}
    fixed = [key for key in options if key in _FIXED]
    if fixed:
        raise ConfigError(f"peer {name!r}: {', '.join(fixed)}: the same for all; leave it out")
    draft_model = options.pop("assistant_model", None)
    return Method(
        f"transformers {name}",
        "transformers",
        options=options,
        draft_model=None if draft_model is None else str(draft_model),
    )


def _split(text: str, example: str) -> tuple[str, list[tuple[str, str]]]:
    name, colon, rest = text.partition(":")
    # A value goes up to the next key, so that it may hold spaces.
    settings = re.findall(r"(\S+?)=(.*?)(?=\s+[\w.]+=|\s*$)", rest.strip())
    if not name.strip() or not colon or not settings:
        raise ConfigError(f"method {text!r}: expected 'NAME: key=value ...', such as {example!r}")
    return name.strip(), settings


def _value(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"value {text!r}: is not valid YAML: {error}") from error
