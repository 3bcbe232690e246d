"""What heads that read features say over their ragged cache, listened to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import ragged
import torch
from listener import native
from matrix import model_of
from torch import Tensor

import mmspec
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.drafters.eagle.drafter import BoundEagle
from mmspec.drafters.growing import trees
from mmspec.drafters.growing.growth import Growth
from mmspec.drafters.growing.together import grow as grow_together
from mmspec.requests import Request
from mmspec.tree import TokenTree


@dataclass
class Said:
    """What a head said at one node: `text` up to node 0, then the path down to the node."""

    text: tuple[int, ...]
    path: tuple[int, ...]  # below node 0
    first: int  # index of the first feature that its row holds
    logits: Tensor


def listening(patch: pytest.MonkeyPatch, *, every: int = 1) -> list[Said]:
    """Notes all that is scored; the drafter is asked at each `every`th step alone."""
    heard: list[Said] = []
    calls, texts = [0], list[tuple[tuple[int, ...], int]]()
    right = BoundEagle.propose_together

    def together(self: Any, sessions: Any, given: Any, budget: int) -> list[TokenTree]:
        calls[0] += 1
        if calls[0] % every:
            return [TokenTree.root(tokens[-1]) for tokens in given]
        texts[:] = [
            (tuple(tokens), session) for session, tokens in zip(sessions, given, strict=True)
        ]
        return right(self, sessions, given, budget)

    def grow(scorer: Any, cache: Any, growths: Sequence[Growth], *, cost: Any) -> None:
        rows = {
            growth.placement.row: (text, session._first)
            for growth, (text, session) in zip(growths, texts, strict=True)
        }
        score = scorer.score

        def noted(trees: Any, cache: Any, placements: Any, **options: Any) -> Any:
            scores = score(trees, cache, placements, **options)
            for index, (tree, place, old, own) in enumerate(
                zip(trees, placements, options["written"], scores, strict=True)
            ):
                text, first = rows[place.row]
                if not old:
                    roots[place.row], tokens[place.row] = tree.num_nodes - 1, []
                # Where no token can change a chain they are known on the device alone.
                given = options.get("ids")
                new = tree.tokens[old:] if given is None else given[index].tolist()
                tokens[place.row] += new
                leaves = [n for n in range(old, tree.num_nodes) if n not in tree.parents]
                for node, logits in zip(leaves, own.logits, strict=True):
                    steps = [n for n in tree.path_to(node) if n > roots[place.row]]
                    path = tuple(tokens[place.row][n] for n in steps)
                    heard.append(Said(text, path, first, logits))
            return scores

        roots: dict[int, int] = {}  # row -> its node 0 among what is written
        tokens: dict[int, list[int]] = {}
        scorer.score = noted
        grow_together(scorer, cache, growths, cost=cost)

    patch.setattr(BoundEagle, "propose_together", together)
    patch.setattr(trees, "grow", grow)
    return heard


@torch.no_grad()
def requests_of(family: str, layouts: Sequence[str], sampling: str) -> list[Request]:
    return ragged.requests_of(family, sampling, layouts, lengths=(30, 23, 16), new=(16, 13, 10))


def engine_of(family: str, drafter: Any, *, stores: bool = False, chunk: int | None = None) -> Any:
    config = Config(
        decode=DecodeConfig(controller="fixed", max_nodes=14, max_rows=3, prefill_chunk=chunk),
        cache=CacheConfig() if stores else CacheConfig(prefix_bytes=0, feature_bytes=0),
    )
    return mmspec.load(model_of(family, "float64"), config=config, drafter=[drafter])


def planes_of(model: Any, requests: Sequence[Request], said: Said) -> Tensor:
    """(3, 1, tokens) by the target's own rule, an image's tokens in rows and columns."""
    text = torch.tensor([[*said.text, *said.path]])
    for request in requests:
        own: Any = request.prompt
        ids = own["input_ids"]
        if torch.equal(text[:, : ids.shape[1]], ids):
            break
    types = torch.zeros_like(text)
    types[text == model.config.image_token_id] = 1
    grid = own.get("image_grid_thw")
    planes, _ = model.model.get_rope_index(
        input_ids=text, mm_token_type_ids=types, image_grid_thw=grid
    )
    return planes


def assert_heard(
    family: str,
    whole: Callable[[Any, Sequence[Tensor], Said], Tensor],
    requests: Sequence[Request],
    results: Any,
    heard: Sequence[Said],
    *,
    within: float = 1e-8,
) -> None:
    """`whole(model, states, said)`: what is expected of a node, from the target's states of text
    and path."""
    prompts = [tuple(request.prompt["input_ids"][0].tolist()) for request in requests]  # type: ignore[call-overload,index]
    texts = [(*ids, *result.tokens) for ids, result in zip(prompts, results, strict=True)]
    states = [
        native(family, request, result.tokens)
        for request, result in zip(requests, results, strict=True)
    ]
    assert len(heard) > 8
    for said in heard:
        row = next(n for n, text in enumerate(texts) if text[: len(said.text)] == said.text)
        expected = whole(model_of(family, "float64"), states[row], said)
        torch.testing.assert_close(said.logits, expected, rtol=within, atol=within)
