from typing import Any

import pytest
from asked import Asked

from mmspec.drafters import asking
from mmspec.tree import TokenTree


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """What the engine's drafters were asked, and what they said."""
    found, right = list[Asked](), asking.propose_all

    def watching(drafter: Any, sessions: Any, texts: Any, budget: int) -> list[TokenTree]:
        trees = right(drafter, sessions, texts, budget)
        for session, text, tree in zip(sessions, texts, trees, strict=True):
            found.append(Asked(drafter.name, session, list(text), budget, tree))
        return trees

    monkeypatch.setattr(asking, "propose_all", watching)
    return found
