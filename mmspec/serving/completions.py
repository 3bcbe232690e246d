"""POST /v1/completions: texts or tokens that go in as they are, without a chat template."""

from collections.abc import Iterator
from typing import Any

import torch

from mmspec.integrations.answer import finish_word
from mmspec.requests import Result
from mmspec.serving.call import Step
from mmspec.serving.errors import refused
from mmspec.serving.fields import Fields
from mmspec.serving.form import Answered, ChoicesForm, check_model, checked_request, ended
from mmspec.serving.logprobs import of_completion, told_places
from mmspec.serving.options import read_options
from mmspec.serving.settings import ServerSettings
from mmspec.state import Prompt
from mmspec.words import counted

_MOST_TOP = 20
_REFUSED = {
    "suffix": "no model here fills in; leave it out",
    "echo": "the prompt is not said again; leave it out",
}


class CompletionForm(ChoicesForm):
    """One text completion, of one or several prompts."""

    def __init__(self, body: object, settings: ServerSettings, namespace: str) -> None:
        """Raises ApiError."""
        fields = Fields(body)
        kind = "text_completion"
        super().__init__(fields, settings, kind=kind, chunk=kind, prefix="cmpl")
        check_model(fields, settings)
        prompts = _prompts(fields.take_any("prompt"))
        options = read_options(fields, settings, namespace)
        length, top = fields.take("max_tokens", int), fields.take("logprobs", int)
        if length is not None:
            options["max_new_tokens"] = length
        if top is not None and not 0 <= top <= _MOST_TOP:
            raise refused("logprobs", f"got {top}; expected 0 to {_MOST_TOP}")
        if top is not None:
            options["logprobs"] = top
        prediction = fields.take("prediction", str)
        if prediction is not None:
            options["prediction"] = prediction
        self._n = options.get("n", 1)
        if fields.take("best_of", int) not in (None, 1, self._n):
            raise refused("best_of", f"expected n={self._n} or nothing: all samples are returned")
        if len(prompts) * self._n > settings.max_samples:
            raise refused(
                "prompt",
                f"got {counted(len(prompts), 'prompt')} with n={self._n}; expected at most "
                f"{counted(settings.max_samples, 'answer')} a call",
            )
        fields.refuse(_REFUSED)
        fields.finish()
        self.said = frozenset(options)
        self.requests = [
            checked_request(prompt, {**options, "raw": isinstance(prompt, str)})
            for prompt in prompts
        ]
        self._has_logprobs = top is not None
        self._offsets: dict[int, int] = {}  # characters sent of each choice

    def whole(self, call: Answered) -> dict[str, Any]:
        choices = [
            self._choice(number * self._n + sample.sample, sample)
            for number, result in enumerate(ended(call))
            for sample in result.samples
        ]
        return self.body(choices, call)

    def events(self, step: Step) -> Iterator[dict[str, Any]]:
        progress = step.progress
        index = step.prompt * self._n + progress.sample
        text, places = step.text, step.places
        if not (text or places or step.is_end):
            return
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + sum(len(place.chosen.text or "") for place in places)
        choice = {
            "index": index,
            "text": text,
            "logprobs": of_completion(places, offset) if self._has_logprobs else None,
            "finish_reason": finish_word(progress.finish_reason) if step.is_end else None,
        }
        yield self.event(choice)

    def _choice(self, index: int, sample: Result) -> dict[str, Any]:
        places = sample.logprobs
        return {
            "index": index,
            "text": sample.text,
            "logprobs": None
            if places is None
            else of_completion(told_places(places, sample.finish_reason)),
            "finish_reason": finish_word(sample.finish_reason),
        }


def _prompts(given: object) -> list[str | Prompt]:
    """One text, several, one list of tokens, or several."""
    if isinstance(given, list) and given and not _are_tokens(given):
        return [_prompt(one) for one in given]
    return [_prompt(given)]


def _prompt(given: object) -> str | Prompt:
    if isinstance(given, str) and given:
        return given
    if _are_tokens(given):
        return Prompt(torch.tensor(given))
    raise refused("prompt", f"got {given!r:.80}; expected a text, a list of tokens, or several")


def _are_tokens(given: object) -> bool:
    return (
        isinstance(given, list)
        and bool(given)
        and all(isinstance(t, int) and not isinstance(t, bool) and 0 <= t < 2**31 for t in given)
    )
