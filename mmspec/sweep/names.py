"""What there is to try: the decoders that the installed transformers knows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mmspec.errors import InputError

Kind = Literal["text", "image", "audio"]
_MAPPINGS: dict[str, Kind] = {  # the first one that knows a model type tells its class
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": "image",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES": "audio",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "text",
}


@dataclass(frozen=True)
class Architecture:
    """One model class and the config that it is made from."""

    model_type: str
    class_name: str
    kind: Kind  # by which of transformers' lists it is in: "audio" is for more than images

    @property
    def config_class(self) -> type[PreTrainedConfig]:
        return CONFIG_MAPPING[self.model_type]

    @property
    def model_class(self) -> type[PreTrainedModel]:
        return getattr(transformers, self.class_name)


def architectures(names: Sequence[str] = ()) -> list[Architecture]:
    """All of them by model type, or those of these model types, in their order. Raises InputError
    for a name that the installed transformers does not have."""
    found: dict[str, Architecture] = {}
    for mapping, kind in _MAPPINGS.items():
        for model_type, known in getattr(modeling_auto, mapping, {}).items():
            class_name = known if isinstance(known, str) else known[0]
            found.setdefault(model_type, Architecture(model_type, class_name, kind))
    for name in names:
        if name not in found:
            raise InputError(
                f"no decoder of the model type {name!r} in transformers "
                f"{transformers.__version__}; expected some of {', '.join(sorted(found))}"
            )
    return [found[name] for name in names or sorted(found)]
