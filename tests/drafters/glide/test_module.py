"""A head over ragged cached rows says what it says of each path as a whole sequence."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import FAMILIES, prompt_inputs
from glide_heads import drawn, target_of
from torch import Tensor
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
)

from mmspec.drafters.glide import CrossRope, GlideHead
from mmspec.drafters.glide.bound_head import HeadForTarget
from mmspec.drafters.glide.glimpse import block_borders
from mmspec.drafters.glide.scoring import GlideScorer, Sight
from mmspec.drafters.heads import TargetEnds
from mmspec.inputs import from_inputs
from mmspec.kv import KVCache
from mmspec.state import Placement, Prefill
from mmspec.target import Target
from mmspec.target.positions import prompt_positions
from mmspec.tree import TokenTree

#        chain      tree
TREES = {
    "chain": (3, (-1, 0, 1, 2, 3)),
    "tree": (2, (-1, 0, 1, 1, 2, 2, 3)),
    "root": (1, (-1, 0, 0, 0)),
}
# family -> (layout of the prompts, layers of the head)
CASES: dict[str, tuple[str, int]] = {
    "llama": ("text", 2),
    "gemma3_text": ("text", 1),
    "gpt2": ("text", 1),
    "qwen2_5_vl": ("image_middle", 2),
    "qwen3_vl": ("image_last", 1),
}


class Read:
    """A prompt in a target's cache, with what the target counts by."""

    def __init__(self, target: Target, cache: KVCache, layout: str, length: int, first: int):
        self.target, self.cache, self.first = target, cache, first
        family = FAMILIES[next(n for n, f in FAMILIES.items() if target is target_of(n))]
        inputs = prompt_inputs(family, layout, num_text_tokens=length, seed=length)  # type: ignore[arg-type]
        prompt = from_inputs(inputs, target.model.config)
        self.ids: list[int] = prompt.token_ids.tolist()
        row = cache.open(4)
        self.prefill: Prefill = target.prefill(prompt, cache, row)

    @property
    def sight(self) -> Sight:
        placement = self.prefill.placement
        return Sight(placement.row, len(self.ids), placement.position_offsets)

    def whole(
        self, head: GlideHead, ends: HeadForTarget, path: Sequence[int], chain: int
    ) -> Tensor:
        """(vocab,) behind the prompt and a path, the first `chain` tokens of which are the prompt's
        last, by the forward of whole sequences."""
        num = len(self.ids)
        ids = torch.tensor([[*self.ids, *path[chain - 1 :]]])
        seq = ids.shape[1]
        layers = self.cache.read(self.sight.row, 0, num)
        pairs = [layers[layer] for layer in ends.target_layers]
        keys, values = (
            [torch.cat([pair[part], torch.full((seq - num, *pair[part].shape[1:]), 9.0)])  # type: ignore[index]
             .transpose(0, 1)[None] for pair in pairs]
            for part in (0, 1)
        )  # fmt: skip
        offsets = torch.tensor([self.sight.position_offsets])
        # As it was read: each token of the prompt for itself, then one speculation.
        lengths = torch.tensor([[1] * num + [seq - num]])
        places = torch.arange(seq)
        mask = (places <= places[:, None]) & (places >= self.first)
        mask |= torch.eye(seq, dtype=torch.bool)
        out = head(
            ends.embed(ids),
            keys,
            values,
            lengths=lengths,
            offsets=offsets,
            mask=mask[None, None],
        )
        return ends.logits(out[0, -1:])[0]


@pytest.mark.parametrize("family", CASES)
@torch.no_grad()
def test_each_path_of_ragged_rows_is_scored_as_its_whole_sequence(family: str) -> None:
    layout, num_layers = CASES[family]
    target = target_of(family)
    head = drawn(target, num_layers=num_layers)
    ends = HeadForTarget(
        head, TargetEnds(target), num_layers=target.model.config.get_text_config().num_hidden_layers
    )
    theirs, own, draw = target.new_cache(), KVCache(num_layers), torch.Generator().manual_seed(1)
    reads = [Read(target, theirs, layout, n, first) for n, first in ((19, 0), (6, 2), (25, 11))]
    places, trees, chains = [], [], []
    for read, (chain, parents) in zip(reads, TREES.values(), strict=True):
        place = Placement(own.open(3), (read.first,))
        places.append(place)
        scorer = GlideScorer(ends, theirs, {place.row: read.sight})
        # All but the chain is read in two goes: the second over the first.
        known = read.ids[read.first : len(read.ids) - chain + 1]
        for part in (known[: len(known) // 2], known[len(known) // 2 :]):
            if part:
                scorer.read(
                    [TokenTree.chain(part[0], part[1:], [1.0] * len(part[1:]), "")], own, [place]
                )
                own.commit({place.row: range(len(part))})
        fresh = torch.randint(3, 90, (len(parents) - chain + 1,), generator=draw).tolist()
        tokens = [*read.ids[len(read.ids) - chain + 1 :], *fresh]
        nodes = len(parents)
        trees.append(TokenTree(tuple(tokens), parents, (1.0,) * nodes, ("",) * nodes))
        chains.append(chain)
    sights = {place.row: read.sight for place, read in zip(places, reads, strict=True)}
    scorer = GlideScorer(ends, theirs, sights)
    checked, written = 0, [0] * 3
    stops = list(chains)
    while growing := [n for n in range(3) if written[n] < trees[n].num_nodes]:
        level = [trees[n].keep(range(stops[n])) for n in growing]
        own_places = [places[n] for n in growing]
        scores = scorer.score(level, own, own_places, written=[written[n] for n in growing])
        for n, tree, score in zip(growing, level, scores, strict=True):
            leaves = [k for k in range(written[n], tree.num_nodes) if not tree.children(k)]
            assert score.logits.shape[0] == len(leaves)
            for node, logits in zip(leaves, score.logits, strict=True):
                path = [tree.tokens[step] for step in tree.path_to(node)]
                expected = reads[n].whole(head, ends, path, chains[n])
                torch.testing.assert_close(logits, expected, rtol=1e-7, atol=1e-7)
                checked += 1
            written[n] = tree.num_nodes
            depths = trees[n].depths
            deeper = [k for k, depth in enumerate(depths) if k >= written[n]]
            stops[n] = max([k + 1 for k in deeper if depths[k] == depths[deeper[0]]], default=0)
    assert checked == 3 + 6 + 4


@torch.no_grad()
def test_the_head_looks_at_the_target_and_at_its_own_past() -> None:
    """Without this, the test above could pass for a head that ignores one of them."""
    target = target_of("llama")
    head, ends = drawn(target), TargetEnds(target)
    ids = torch.randint(3, 90, (1, 12))
    keys, values = torch.randn(2, 1, 2, 12, 16, dtype=torch.float64)
    said = head(ends.embed(ids), keys, values)
    for change in ("keys", "values", "ids"):
        k, v, changed = keys.clone(), values.clone(), ids.clone()
        {"keys": k[:, :, 3], "values": v[:, :, 3], "ids": changed[:, 3]}[change].add_(1)
        moved = (head(ends.embed(changed), k, v) - said).abs().amax(-1)[0] > 1e-9
        # Blocks of 5: only from token 5 on is token 3's KV seen, its id by itself and all behind.
        first = 3 if change == "ids" else 5
        assert moved.tolist() == [place >= first for place in range(12)], change


def test_a_token_sees_what_was_committed_when_it_was_said() -> None:
    """
    tokens    0 1 2 | 3 | 4 5 6 7 |     speculations of 3, 1 and 4, node 0 first
    sees      1 1 1 | 3 | 4 4 4 4 |     of the target's; the first token's always
    """
    borders = block_borders(torch.tensor([[3, 1, 4], [1, 2, 9]]), 8)
    assert borders.tolist() == [[1, 1, 1, 3, 4, 4, 4, 4], [1, 1, 1, 3, 3, 3, 3, 3]]


def _unrotated_and_cached(target: Target, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    """Keys of the last layer before and after rotation, (kv_heads, seq, head_dim); positions."""
    model = target.model
    name = next(n for n in FAMILIES if target is target_of(n))
    inputs = prompt_inputs(FAMILIES[name], layout, num_text_tokens=14)  # type: ignore[arg-type]
    prompt = from_inputs(inputs, model.config)
    cache = target.new_cache()
    row = cache.open(4)
    attention = model.get_decoder().layers[-1].self_attn
    held: list[Tensor] = []
    module = attention.k_norm if hasattr(attention, "k_norm") else attention.k_proj
    hook = module.register_forward_hook(lambda module, args, out: held.append(out))
    target.prefill(prompt, cache, row)
    hook.remove()
    (keys,) = held
    seq, size = prompt.num_tokens, cache.flat_layers[-1].keys.shape[2]
    raw = keys.reshape(seq, -1, size) if keys.shape[1] == seq else keys[0].transpose(0, 1)
    pair = cache.read(row, 0, seq)[-1]
    assert pair is not None
    positions, _ = prompt_positions(model, prompt)
    planes = positions if positions.ndim == 3 else positions[None]
    return raw.transpose(0, 1), pair[0].transpose(0, 1), planes


ROTATED = [
    ("llama", "text"), ("qwen3", "text"), ("gemma2", "text"), ("gemma3_text", "text"),
    ("llava", "image_first"), ("qwen2_vl", "image_middle"), ("qwen2_5_vl", "image_middle"),
    ("qwen3_vl", "image_middle"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "layout"), ROTATED)
@torch.no_grad()
def test_queries_are_rotated_as_the_targets_keys_are(family: str, layout: str) -> None:
    target = target_of(family)
    raw, cached, positions = _unrotated_and_cached(target, layout)
    last = target.model.config.get_text_config().num_hidden_layers - 1
    rope = CrossRope.of_target(target.model, last)
    turned = rope.rotated(raw[None], positions, rope.tensors(torch.device("cpu")))[0]
    # transformers rotates by angles in float32.
    torch.testing.assert_close(turned, cached, rtol=1e-4, atol=1e-4)
    assert (raw - cached).abs().max() > 0.1, "rotations that can be seen"
    if len(positions) > 1:
        assert max(rope.planes) == 2 and not (positions == positions[:1]).all()


def test_a_target_that_is_offloaded_is_asked_where_it_is_computed() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = FAMILIES["llama"].build(torch.float64)
    expected = CrossRope.of_target(model, 1)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.device.type == "meta" and expected.frequencies
    assert CrossRope.of_target(model, 1) == expected


@pytest.mark.parametrize("kind", ["cohere", "cohere2", "glm", "llama4"])
@torch.no_grad()
def test_keys_that_are_rotated_by_pairs_in_part_or_not_at_all(kind: str) -> None:
    shape: dict[str, Any] = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
    }  # fmt: skip
    made: dict[str, Any] = {
        "cohere": lambda: CohereForCausalLM(CohereConfig(**shape)),
        "cohere2": lambda: Cohere2ForCausalLM(
            Cohere2Config(**shape, layer_types=["full_attention"])
        ),
        "glm": lambda: GlmForCausalLM(GlmConfig(**shape, head_dim=16)),
        "llama4": lambda: Llama4ForCausalLM(
            Llama4TextConfig(**shape, head_dim=8, num_local_experts=2, use_qk_norm=False)
        ),
    }
    torch.manual_seed(0)
    model = made[kind]().double().eval()
    held: list[Tensor] = []
    module = model.model.layers[0].self_attn.k_proj
    module.weight.normal_(std=0.5)
    module.register_forward_hook(lambda module, args, out: held.append(out))
    out = model(input_ids=torch.randint(50, (1, 9)), use_cache=True)
    cached = out.past_key_values.layers[0].keys
    raw = held[0].unflatten(-1, (2, -1)).transpose(1, 2)
    rope = CrossRope.of_target(model, 0)
    turned = rope.rotated(raw, torch.arange(9)[None, None], rope.tensors(torch.device("cpu")))
    torch.testing.assert_close(turned, cached, rtol=1e-4, atol=1e-4)
    assert rope.layout == ("halves" if kind == "cohere2" else "pairs")
    if kind == "cohere2":
        assert not rope.frequencies, "its layers that see the whole text rotate nothing"
    if kind == "glm":
        assert 2 * len(rope.frequencies) < raw.shape[-1], "a part is not rotated"
