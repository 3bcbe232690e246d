"""Source: somewhere that continuations of a text are found."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from mmspec.drafters.own_text import OwnText
from mmspec.retrieval import Continuation

_TAIL = 64  # tokens that a look-up may compare


class Query(NamedTuple):
    """One row's place: what is known of the text whose continuation is sought."""

    own: OwnText  # all that the request itself brought and was answered so far
    namespace: str | None  # whose earlier texts it may use; None: nobody's
    hidden: Mapping[int, Tensor]  # layer -> (hidden,): the state that `tail[-1]` was chosen from,
    # so it belongs to the place of tail[-2]; of the layers in `Source.taps`, {} where nobody taps

    @property
    def tail(self) -> list[int]:
        """The text's last tokens, up to 64, the one just chosen last; -1: an image's."""
        return self.own.tail(_TAIL)


class Source:
    """Shared by all requests of an engine and asked by one thread at a time; what it knows of a
    request is in the query. A source inherits from it what it has no use for."""

    name: str  # a key of `mmspec.retrieval.continuations.SOURCE_WEIGHTS`
    taps: Sequence[int] = ()  # layers whose hidden states it asks by, as `Target.taps`
    learns = False  # whether `was_useful` and `learn` have to be told

    def find(self, queries: Sequence[Query], *, length: int) -> list[list[Continuation]]:
        """What may follow each query's `tail`, the best first: up to 32 continuations of at most
        `length` tokens. One that was found by its hidden state alone has to agree with the token
        just chosen: its own first token is `tail[-1]`, and what is given are those after it."""
        return [self.find_one(query, length) for query in queries]

    def find_one(self, query: Query, length: int) -> list[Continuation]:
        """As `find`, for a source that looks up one row after the other."""
        raise NotImplementedError

    def was_useful(self, continuation: Continuation) -> None:
        """Tokens of a continuation that `find` gave were accepted."""

    def refresh(self) -> None:
        """A request begins: what has changed outside since may be seen from now on."""

    def learn(self, tokens: Sequence[int], namespace: str) -> None:
        """A request of the namespace has ended with this text; -1 where it cannot be copied."""

    def forget(self, namespace: str | None) -> None:
        """Drops what earlier requests left, of one namespace or of all."""
