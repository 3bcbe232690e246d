"""Window: tokens yet to come, guessed again and again in parallel (Jacobi iteration).

    column       0    1    2        Level 0 is a chain below node 0, whose token is column 0's own;
    level 0    [0] -- a -- b        the other levels of a column hang below its level 0. Level j of
    level 1     c     d    e        column i stands i + j places after node 0. So the window is a
    level 2     f     g    h        token tree: 0-a-b-e-h, 0-a-d-g, 0-c-f.

arXiv 2402.02057, section 3 and figure 2.
"""

from collections.abc import Callable, Sequence


class Window:
    """`columns` (width, levels) of tokens, each a piece of a text to come, as it was guessed in as
    many steps as there are levels."""

    def __init__(self, width: int, levels: int, piece: Callable[[int], list[int]]) -> None:
        """`piece` gives so many tokens of some text, for what nothing was guessed for yet."""
        self._piece = piece
        self._levels = levels
        self.columns = [piece(levels) for _ in range(width)]

    @property
    def node0(self) -> int:
        return self.columns[0][0]

    @node0.setter
    def node0(self, token: int) -> None:
        self.columns[0][0] = token

    def paths(self, count: int) -> list[tuple[int, ...]]:
        """Of the first `count` columns: the tokens below node 0 down to the last level."""
        trunk = [column[0] for column in self.columns[1:]]
        return [(*trunk[:place], *column[1:]) for place, column in enumerate(self.columns[:count])]

    def advance(
        self, choices: Sequence[int | None], num_tokens: int
    ) -> list[tuple[int, tuple[int, ...]]]:
        """A step of the iteration: `choices` (columns scored,) are what the target chose at the
        end of each column's path, None where it was not scored; the text grew by `num_tokens`.
        Returns the n-grams that were found: (first token, the others)."""
        found = list[tuple[int, tuple[int, ...]]]()
        for place, column in enumerate(self.columns):
            choice = choices[place] if place < len(choices) else None
            if choice is None:
                (guess,) = self._piece(1)
            else:
                guess = choice
                found.append((column[0], (*column[1:], choice)))
            column.append(guess)
            del column[0]  # every level is one place further on: so is the text, by its first token
        self.skip(num_tokens - 1)
        return found

    def skip(self, num_tokens: int) -> None:
        """The text grew by `num_tokens`, and nothing was guessed."""
        fresh = min(num_tokens, len(self.columns))
        del self.columns[:fresh]
        self.columns += [self._piece(self._levels) for _ in range(fresh)]
