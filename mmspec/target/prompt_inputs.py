"""What a model is told of a part of a prompt beside its token ids: media, and values by token."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor
from transformers import PreTrainedModel

from mmspec.encoders.features import FeatureSource
from mmspec.encoders.media import join, token_inputs
from mmspec.state import Prompt


@contextmanager
def inputs_of(
    model: PreTrainedModel, prompt: Prompt, start: int, stop: int, features: FeatureSource | None
) -> Iterator[dict[str, Tensor]]:
    """Within it, one forward reads the prompt's tokens [start, stop) with the inputs that it
    yields, and the features of their media from where they are known. Of models that put media
    among the tokens; of others see `cross`."""
    media = None if features is None else features.media
    is_whole = stop - start == prompt.num_tokens
    inputs = dict(prompt.model_inputs)
    if not is_whole:
        inputs = {name: value[:, start:stop] for name, value in token_inputs(prompt).items()}
    places = {} if media is None else media.placeholders(start, stop)
    if prompt.media and not is_whole:
        assert media is not None, "a part of a prompt with media needs features"
        for kind, place in places.items():
            inputs |= join(media.needed(kind, *place))
    with features.attached(model, places) if features and places else nullcontext():
        yield inputs
