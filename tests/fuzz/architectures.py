"""Any decoder of the installed transformers as a family: the sweep's tiny model, text alone."""

from functools import partial

from families import FAMILIES, Family

from mmspec.sweep import architectures
from mmspec.sweep.build import build


def take_in(name: str) -> None:
    """From here on `FAMILIES` has it by its model type, where it is none of theirs."""
    if name not in FAMILIES:
        (architecture,) = architectures([name])
        FAMILIES[name] = Family(name, "text", partial(build, architecture))


def names() -> list[str]:
    """Model types, FAMILIES' own among them."""
    return [one.model_type for one in architectures()]
