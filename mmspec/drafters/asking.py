"""Asking a drafter for several rows: what it cannot do for one of them costs that row alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from mmspec.drafters.base import BatchDrafter, Drafter, DraftSession
from mmspec.kernels import says_lost, says_used_up
from mmspec.tree import TokenTree


def propose_all(
    drafter: Drafter,
    sessions: Sequence[DraftSession],
    texts: Sequence[Sequence[int]],
    budget: int,
) -> list[TokenTree]:
    """One tree a session, in one go where the drafter can do so. Raises whatever it does."""
    if not _proposes_together(drafter):
        pairs = zip(sessions, texts, strict=True)
        return [session.propose(tokens, budget) for session, tokens in pairs]
    trees = drafter.propose_together(sessions, texts, budget)
    if len(trees) != len(sessions):
        raise ValueError(f"{len(trees)} trees, expected one for each of {len(sessions)} sessions")
    return trees


@dataclass(frozen=True)
class Asked:
    """Of one drafter, for some rows."""

    trees: tuple[TokenTree | Exception, ...]  # (rows,) or why a row has none
    failure: Exception | None = None  # of all rows together, where none alone failed


def ask_each(
    drafter: Drafter,
    sessions: Sequence[DraftSession],
    texts: Sequence[Sequence[int]],
    budget: int,
    *,
    together: bool,
) -> Asked:
    """Of all rows together where the drafter can do so; where that fails, or without `together`,
    of each row alone.

    Where memory is used up no row is asked again. Raises what says that the device is lost.
    """
    failure: Exception | None = None
    if together and len(sessions) > 1 and _proposes_together(drafter):
        try:
            return Asked(tuple(propose_all(drafter, sessions, texts, budget)))
        except Exception as error:  # told by the rows alone, or by the answers
            if says_used_up(error):
                return Asked((error,) * len(sessions))
            if says_lost(error):
                raise
            failure = error
    trees = tuple(
        _alone(drafter, session, tokens, budget)
        for session, tokens in zip(sessions, texts, strict=True)
    )
    is_a_rows = any(isinstance(tree, Exception) for tree in trees)
    return Asked(trees, None if is_a_rows else failure)


def _proposes_together(drafter: Drafter) -> TypeGuard[BatchDrafter]:
    """As isinstance says, which takes ten microseconds for a protocol: it is asked at each step."""
    return hasattr(drafter, "propose_together")


def _alone(
    drafter: Drafter, session: DraftSession, tokens: Sequence[int], budget: int
) -> TokenTree | Exception:
    try:
        return propose_all(drafter, [session], [tokens], budget)[0]
    except Exception as error:  # the caller tells of it, and goes on without
        if says_lost(error):
            raise
        return error
