"""Where a prompt may be cut without changing a key before the cut: chunks and reused prefixes."""

from dataclasses import dataclass

from mmspec.state import Prompt


@dataclass(frozen=True)
class Cuts:
    """A model's rule. As it stands here: between any two tokens."""

    whole_because: str | None = None  # why no prompt may be cut
    media_because: str | None = None  # why no prompt with media may be
    has_blocks: bool = False  # not within an image or video: its tokens see each other
    has_whole_media: bool = False  # nor here: the model gives no features of a part of a medium

    def allows(self, prompt: Prompt) -> bool:
        if self.has_whole_media and (
            len({span.kind for span in prompt.media}) > 1
            or any(span.kind == "audio" and span.stop - span.start == 1 for span in prompt.media)
        ):
            return False  # encoded by what else there is (Phi-4-multimodal's media, Qwen2-Audio's)
        return self.whole_because is None and not (prompt.media and self.media_because)

    @property
    def _keeps_media(self) -> bool:
        return self.has_blocks or self.has_whole_media

    def next_stop(self, prompt: Prompt, start: int, chunk_tokens: int) -> int:
        """Where a chunk that begins at `start` ends: at the next multiple of `chunk_tokens`,
        whatever the batch; behind a block that lies across it; at the prompt's end, if sooner."""
        stop = min((start // chunk_tokens + 1) * chunk_tokens, prompt.num_tokens)
        for span in prompt.media if self._keeps_media else ():
            if span.start < stop < span.stop:
                stop = span.stop
        return stop

    def last_border(self, prompt: Prompt, limit: int) -> int:
        """The last place at or before `limit` tokens where the prompt may be cut."""
        for span in prompt.media if self._keeps_media else ():
            if span.start < limit < span.stop:
                return span.start
        return limit
