"""Any decoder of the installed transformers as a family: the sweep's tiny model, text alone."""

from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from families import FAMILIES, Family

from mmspec.sweep import architectures
from mmspec.sweep.build import build

OWN = tuple(FAMILIES)  # before any other is taken in
ADAPTED = "adapted_llama"  # with two adapters of peft


def take_in(name: str) -> None:
    """From here on `FAMILIES` has it by its model type, where it is none of theirs."""
    if name == ADAPTED:
        FAMILIES[name] = Family(name, "text", _adapted)
    elif name not in FAMILIES:
        (architecture,) = architectures([name])
        FAMILIES[name] = Family(name, "text", partial(build, architecture))


def names() -> list[str]:
    """Model types, FAMILIES' own among them."""
    return [one.model_type for one in architectures()]


def _adapted(dtype: torch.dtype) -> Any:
    model = FAMILIES["llama"].build(dtype)
    if find_spec("peft"):
        from peft import LoraConfig

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for name in ("second", "first"):
                targets = ["q_proj", "v_proj", "down_proj"]
                config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
                model.add_adapter(config, name)
    return model.to(dtype)
