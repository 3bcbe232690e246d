"""What runs in a target's place when it drafts for itself: other weights, fewer layers."""

from collections.abc import Callable, Sequence

from mmspec.errors import ConfigError
from mmspec.target.attached import Attachment
from mmspec.target.quantised import QuantisedLinears, Weights
from mmspec.target.skipping import SkippedLayers
from mmspec.target.target import Target


def draft_forward(
    *, weights: Weights = "same", skipped: Sequence[int] = ()
) -> Callable[[Target], Target] | None:
    """Makes of a target what drafts with its KV: with other `weights` than "same" by a low-bit copy
    of its linear layers, without the layers `skipped`. None where that is the target itself.

    What it makes raises ConfigError for layers that the target does not have, ModelError where
    its weights cannot be copied.
    """
    if weights == "same" and not skipped:
        return None

    def make(target: Target) -> Target:
        attachments: list[Attachment] = []
        if skipped:
            layers = SkippedLayers(target.model, packing=target.packing)
            try:
                layers.skipped = layers.chosen(skipped)
            except ValueError as error:
                raise ConfigError(f"layers to skip: {error}") from error
            attachments.append(layers)
        if weights != "same":
            attachments.append(QuantisedLinears(target.model, weights))
        return target.variant(*attachments)

    return make
