"""mmspec's own decoding, timed."""

from mmspec.bench.methods import Method
from mmspec.bench.timeline import Run, Timeline
from mmspec.engine import Engine
from mmspec.state import Prompt


class Ours:
    """One method of ours. Its time includes turning tokens into text, which transformers' does
    not."""

    def __init__(self, method: Method, engine: Engine, *, reuse: bool = False) -> None:
        """Without `reuse` the same prompt again is prefilled again, as transformers does it."""
        self._engine = engine
        self._options = {"reuse": reuse, **method.options}

    def run(self, prompt: Prompt, max_new_tokens: int) -> Run:
        """Greedy, at most `max_new_tokens`."""
        timeline = Timeline()
        stream = self._engine.stream(
            prompt, temperature=0.0, max_new_tokens=max_new_tokens, seed=0, **self._options
        )
        with stream:
            for num_tokens in stream.steps():
                timeline.note(num_tokens)
        stats = stream.result.stats
        return timeline.run(
            stream.result.tokens, verifications=stats.steps, accepted=stats.accepted_tokens
        )
