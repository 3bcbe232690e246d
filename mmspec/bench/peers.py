"""transformers' own generate, timed. The model is a load that mmspec never touches."""

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from mmspec.bench.methods import Method
from mmspec.bench.timeline import Run, Timeline
from mmspec.state import Prompt
from mmspec.target.native import native_inputs


class Peer:
    """One method of transformers."""

    def __init__(
        self, method: Method, model: PreTrainedModel, assistance: Mapping[str, object]
    ) -> None:
        """`assistance`: further arguments of generate, for its assisted generation."""
        self._model = model
        self._options = {**method.options, **assistance}

    def run(self, prompt: Prompt, max_new_tokens: int) -> Run:
        """Greedy, at most `max_new_tokens`."""
        watch = _Watch()
        output = self._model.generate(
            **native_inputs(self._model, prompt),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            streamer=watch,
            **self._options,
        )
        tokens = tuple(output[0, prompt.num_tokens :].tolist())
        counts = watch.timeline.counts
        # Each step gives what it accepted and one token of the model's own.
        return watch.timeline.run(
            tokens, verifications=len(counts), accepted=len(tokens) - len(counts)
        )


class _Watch(BaseStreamer):
    """A streamer that keeps the time alone: what generate hands it is the prompt, then each
    step's tokens."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self._num_tokens: int | None = None

    def put(self, value: torch.Tensor) -> None:
        if self._num_tokens is None:  # the prompt
            self._num_tokens = 0
            return
        self._num_tokens += value.numel()
        self.timeline.note(self._num_tokens)

    def end(self) -> None:
        pass
