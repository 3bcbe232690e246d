"""Requests of one call of `batch` or `generate`, which LangChain asks for one by one."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context

from mmspec.engine import Engine
from mmspec.integrations.joined import answers
from mmspec.requests import Request, Result


class Together:
    """Requests that are decoded together when the first of them is asked for."""

    def __init__(self, owner: object, engine: Engine, requests: Sequence[Request]) -> None:
        self.owner = owner  # the component whose call it is
        self._engine = engine
        self._waiting: list[Request] = list(requests)
        self._answers: list[tuple[Request, Result]] = []
        self._lock = threading.Lock()
        self._is_left = threading.Event()

    def take(self, request: Request) -> Result | None:
        """The answer to a request that has the same prompt, each once. None where there is none.
        Raises what went wrong with it."""
        with self._lock:
            if self._waiting:
                # In no batch's context: what a request's own callback asks is none of this one's.
                apart = copy_context()
                apart.run(_CURRENT.set, None)
                results = apart.run(answers, self._engine, self._waiting, self._is_wanted)
                self._answers = list(zip(self._waiting, results, strict=True))
                self._waiting = []
            prompts = [asked.prompt for asked, _ in self._answers]
            if request.prompt not in prompts:
                return None
            _, result = self._answers.pop(prompts.index(request.prompt))
        for sample in result.samples:
            if sample.error is not None:
                raise sample.error
        return result

    def _is_wanted(self) -> bool:
        return not self._is_left.is_set()

    def leave(self) -> None:
        """The call has ended, or was cancelled: what is decoded for it ends at its next step."""
        self._is_left.set()


# Belongs to one call, whose threads and tasks copy its context.
_CURRENT: ContextVar[Together | None] = ContextVar("mmspec_together", default=None)


@contextmanager
def decoded_together(together: Together) -> Iterator[None]:
    """Within, also in the threads that are begun there, `current` finds it."""
    token = _CURRENT.set(together)
    try:
        yield
    finally:
        together.leave()
        _CURRENT.reset(token)


def current(owner: object) -> Together | None:
    """The requests that are decoded together with the one that `owner` is asked for now."""
    together = _CURRENT.get()
    return together if together is not None and together.owner is owner else None
