"""How many placeholders a medium fills, where nothing in its tensors says so."""

import inspect
from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedModel

from mmspec.encoders.features import METHODS
from mmspec.encoders.outputs import FeatureError, feature_rows
from mmspec.kernels import raise_if_lost, shown
from mmspec.state import MediaKind


def count_features(model: PreTrainedModel, kind: MediaKind, tensors: Mapping[str, Tensor]) -> int:
    """As many as the model's own encoder makes features of it; `tensors` are those of one medium.
    For who holds the model's lock. Raises FeatureError where the model does not tell."""
    name = METHODS[kind]  # the whole model may leave it to the one within
    method = next((getattr(part, name) for part in model.modules() if hasattr(part, name)), None)
    if method is None:
        raise FeatureError(f"{type(model).__name__} has no {name}")
    named = inspect.signature(method).parameters
    hands_on = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in named.values())
    given = {name: value for name, value in tensors.items() if hands_on or name in named}
    try:
        return len(feature_rows(method(**given)))
    except FeatureError:
        raise
    except Exception as error:
        raise_if_lost(error, model.device)
        raise FeatureError(shown(error)) from error
