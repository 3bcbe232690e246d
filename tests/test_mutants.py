"""The exactness matrix can fail: each of these faults, put into the code, is caught by a cell."""

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from matrix import Cell, run_cell
from torch import Tensor

import mmspec.sampling
import mmspec.target.target
from mmspec.kv import KVCache
from mmspec.row import Row
from mmspec.state import Placement, Scores, Verdict
from mmspec.tree import TokenTree
from mmspec.verify import Verifier

Patch = Callable[[pytest.MonkeyPatch], None]


def siblings_see_each_other(patch: pytest.MonkeyPatch) -> None:
    """Wrong mask: every node sees all nodes before it."""

    def causal(tree: TokenTree) -> object:
        return torch.ones(tree.num_nodes, tree.num_nodes).tril().bool().numpy()

    patch.setattr(TokenTree, "ancestor_mask", property(causal))


def prefix_is_cut(patch: pytest.MonkeyPatch) -> None:
    """Wrong mask: the last committed token is not seen."""
    rule = mmspec.target.target.MaskRule
    build = rule.build

    def shorter(
        self: object, trees: Sequence[TokenTree], lengths: Sequence[int], dtype: torch.dtype
    ) -> Tensor | dict[str, Tensor]:
        masks = build(self, trees, lengths, dtype)  # type: ignore[arg-type]
        for mask in masks.values() if isinstance(masks, dict) else (masks,):
            for row, length in enumerate(lengths):
                mask[row, :, :, length - 1] = torch.finfo(dtype).min
        return masks

    patch.setattr(rule, "build", shorter)


def positions_count_nodes(patch: pytest.MonkeyPatch) -> None:
    """Wrong position: a node's index in place of its depth."""
    right = mmspec.target.target._node_positions

    def wrong(
        trees: Sequence[TokenTree], lengths: Sequence[int], placements: Sequence[Placement]
    ) -> Tensor:
        chains = [
            TokenTree.chain(t.tokens[0], t.tokens[1:], t.confidence[1:], "mutant") for t in trees
        ]
        return right(chains, lengths, placements)

    patch.setattr(mmspec.target.target, "_node_positions", wrong)


def commit_takes_the_first_nodes(patch: pytest.MonkeyPatch) -> None:
    """Wrong commit: as many nodes as were accepted, but not the accepted ones."""
    right = KVCache.commit

    def wrong(self: KVCache, paths: Mapping[int, Sequence[int]]) -> None:
        right(self, {row: range(len(path)) for row, path in paths.items()})

    patch.setattr(KVCache, "commit", wrong)


def commit_keeps_one_too_many(patch: pytest.MonkeyPatch) -> None:
    """Wrong commit: a node after the accepted path stays, where there is one."""
    right = KVCache.commit

    def wrong(self: KVCache, paths: Mapping[int, Sequence[int]]) -> None:
        longer = {
            row: [*path, path[-1] + 1] if path[-1] + 1 < self._written[row] else path
            for row, path in paths.items()
        }
        right(self, longer)

    patch.setattr(KVCache, "commit", wrong)


def noise_is_the_steps(patch: pytest.MonkeyPatch) -> None:
    """Wrong noise position: all tokens of a step share the noise of its first."""
    gumbel, verify = mmspec.sampling.gumbel, Row.verify
    step_start: dict[int, int] = {}

    def remember(self: Row, rule: Verifier, tree: TokenTree, scores: Scores) -> Verdict | None:
        step_start[self.sampler.seed] = self.sampler.num_chosen
        return verify(self, rule, tree, scores)

    def wrong(seed: int, position: int, vocab_size: int, **options: object) -> Tensor:
        return gumbel(seed, step_start.get(seed, position), vocab_size, **options)  # type: ignore[arg-type]

    patch.setattr(Row, "verify", remember)
    patch.setattr(mmspec.sampling, "gumbel", wrong)


FAULTS: tuple[Patch, ...] = (
    siblings_see_each_other,
    prefix_is_cut,
    positions_count_nodes,
    commit_takes_the_first_nodes,
    commit_keeps_one_too_many,
    noise_is_the_steps,
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("family", ["llama", "qwen2_vl"])
def test_the_fault_is_caught(fault: Patch, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = "text" if family == "llama" else "image_middle"
    cell = Cell(family, "adversary", "t1", 3, layout)
    assert not run_cell(cell).mismatches  # also fills the cache of plain texts, without the fault
    if fault is prefix_is_cut:  # plain decoding suffers alike: only an outside reference tells
        fault(monkeypatch)
        assert _differs_from_transformers(family)
        return
    monkeypatch.setattr("mmspec.build.probed_target", lambda model: (_unprobed(model), "tree"))
    fault(monkeypatch)
    assert run_cell(cell).mismatches


@pytest.mark.parametrize(
    "fault",
    [siblings_see_each_other, prefix_is_cut, positions_count_nodes],
    ids=lambda f: f.__name__,
)
def test_the_probe_finds_faults_of_the_model_at_load(
    fault: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matrix import model_of

    from mmspec.errors import ModelError
    from mmspec.target.probe import probe

    model = model_of("llama", "float64")
    assert probe(model)[1].shape == "tree"
    fault(monkeypatch)
    try:
        shape = probe(model)[1].shape
    except ModelError:
        shape = "refused"
    assert shape != "tree"


def _unprobed(model: object) -> object:
    from mmspec.target import Target

    return Target(model)  # type: ignore[arg-type]


def _differs_from_transformers(family: str) -> bool:
    from families import FAMILIES, prompt_inputs
    from matrix import model_of

    from mmspec.engine import Engine

    model = model_of(family, "float64")
    inputs = prompt_inputs(FAMILIES[family], "text", num_text_tokens=20)
    expected = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, 20:].tolist()
    engine = Engine(_unprobed(model), None)  # type: ignore[arg-type]
    return list(engine.generate(inputs, max_new_tokens=16, temperature=0.0).tokens) != expected
