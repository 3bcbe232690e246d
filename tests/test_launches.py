"""What a decode step tells a GPU to do beside its graph: each launch takes some microseconds of
the device, and what is told before the graph also of the step."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pretend
import pytest
import torch
from families import FAMILIES, prompt_inputs
from matrix import letters
from pretend.device import Launch, Wait
from test_waits import SAMPLINGS, lookup

import mmspec
from mmspec import decoder
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.drafters.draft_model import DraftModel
from mmspec.requests import Request

pytest.importorskip("triton", reason="needs triton")

# name -> what is drafted with, given the model on the device
DRAFTERS: Mapping[str, Callable[[Any], list[Any]]] = {
    "plain": lambda model: [],
    "lookup": lambda model: [lookup()],
    "draft": lambda model: [DraftModel(model, letters(), top_k=1, min_confidence=0.0, max_depth=3)],
}
SLOW = pytest.mark.slow  # half a minute each, as each operation and each kernel goes by Python


def steps_of(drafter: str, sampling: str, *, rows: int = 1) -> list[list[Launch | Wait]]:
    """What the device is told in each step in which it is told a graph and records none."""
    with pretend.device() as device, pytest.MonkeyPatch.context() as patch:
        model = FAMILIES["llama"].build(torch.float32).to("cuda")
        config = Config(
            decode=DecodeConfig(max_nodes=8, max_rows=rows, controller="fixed"),
            cache=CacheConfig(prefix_bytes=0),
        )
        engine = mmspec.load(model, letters(), config=config, drafter=DRAFTERS[drafter](model))
        begun, propose = list[tuple[int, int]](), decoder.propose

        def noted_propose(*args: Any, **options: Any) -> Any:
            begun.append((len(device.told), engine.graph_info.recorded))
            return propose(*args, **options)

        patch.setattr(decoder, "propose", noted_propose)
        requests = [
            Request(
                prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=length, seed=length),
                max_new_tokens=6 if drafter == "plain" else 16,
                seed=5,
                ignore_eos=True,
                **SAMPLINGS[sampling],
            )
            for length in (30, 17, 23, 27)[:rows]
        ]
        engine.generate(requests)
        begun.append((len(device.told), engine.graph_info.recorded))
        steps = [device.told[a:b] for (a, made), (b, later) in pairwise(begun) if made == later]
    return [step for step in steps if any(is_graph(told) for told in step)]


def is_graph(told: Launch | Wait) -> bool:
    return isinstance(told, Launch) and told.what == "graph"


@pytest.mark.parametrize(
    ("drafter", "sampling", "rows", "most"),
    [
        ("plain", "greedy", 1, 7),
        pytest.param("plain", "t1", 1, 9, marks=SLOW),
        pytest.param("plain", "warped", 1, 32, marks=SLOW),
        pytest.param("plain", "greedy", 4, 8, marks=SLOW),
        pytest.param("plain", "t1", 4, 10, marks=SLOW),
        pytest.param("lookup", "greedy", 1, 6, marks=SLOW),
        pytest.param("draft", "greedy", 1, 30, marks=SLOW),  # eight a forward of the draft's
    ],
)
def test_a_step_launches_little_beside_its_graph(
    drafter: str, sampling: str, rows: int, most: int
) -> None:
    """And where nobody drafts, the next step's graph is launched before this one's tokens are
    waited for, but in the last step, which begins none."""
    steps = steps_of(drafter, sampling, rows=rows)
    assert steps, "nothing was replayed"
    if drafter == "plain":
        for step in steps:
            (graph,) = (place for place, told in enumerate(step) if is_graph(told))
            assert any(isinstance(told, Wait) for told in step[graph:]), [*map(str, step)]
    largest = max(([t for t in step if isinstance(t, Launch)] for step in steps), key=len)
    shown = "\n".join(map(str, largest))
    assert len(largest) <= most, f"{len(largest)} launches, expected at most {most}:\n{shown}"
