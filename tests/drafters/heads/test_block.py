"""A head's layer over ragged cached rows and trees says what it says of each path as a whole."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLRotaryEmbedding,
    apply_rotary_pos_emb,
)

from mmspec.attention import Reach
from mmspec.drafters.eagle.module import HeadStates
from mmspec.drafters.eagle.scoring import EagleScorer, read_text
from mmspec.drafters.heads import (
    Attend,
    BlockConfig,
    DecoderBlock,
    Rotary,
    TextPlaces,
    WholeSequences,
)
from mmspec.errors import ConfigError
from mmspec.kv import KVCache
from mmspec.state import Placement
from mmspec.tree import TokenTree

VOCAB, HIDDEN = 23, 16
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


def config_of(**changes: Any) -> BlockConfig:
    given: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "intermediate_size": 24,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "vocab_size": VOCAB,
        "max_positions": 128,
        **changes,
    }
    return BlockConfig(**given)


class Head(nn.Module):
    """Two layers over [embedding + feature]."""

    device = torch.device("cpu")

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.reaches = [Reach(window=config.window)] * 2
        self.embedding = nn.Embedding(VOCAB, HIDDEN)
        self.rotary = Rotary(config)
        self.layers = nn.ModuleList([DecoderBlock(config, layer=n) for n in range(2)])
        self.out = nn.Linear(HIDDEN, VOCAB)

    def run(self, ids: Tensor, features: Tensor, positions: Tensor, attend: Any) -> Tensor:
        states = self.embedding(ids) + features
        rotation = self.rotary(positions, states.dtype)
        for layer in self.layers:
            states = layer(states, rotation, attend)
        return states

    def states(
        self, ids: Tensor, features: Tensor, positions: Tensor, attend: Attend
    ) -> HeadStates:
        states = self.run(ids, features, positions, attend)
        return HeadStates(states, states)

    def logits(self, read: Tensor) -> Tensor:
        return self.out(read)

    def over_target(self, logits: Tensor) -> Tensor:
        return logits


def head_of(**changes: Any) -> Head:
    torch.manual_seed(0)
    return Head(config_of(**changes)).double().eval()


def whole(head: Head, ids: Sequence[int], features: Tensor, first: int) -> Tensor:
    """(vocab,) of the last of `ids`, token by token from nothing: beside a token without a feature
    of its own stands what was said of the one before it."""
    known = list(features)
    for count in range(1, len(ids) + 1):
        positions = first + torch.arange(count).unsqueeze(0)
        seen = torch.stack(known[:count]).unsqueeze(0)
        mask = None
        if (window := head.reaches[0].window) is not None:
            far = torch.arange(count)[:, None] - torch.arange(count)
            mask = (far >= 0) & (far < window)
        states = head.run(torch.tensor([ids[:count]]), seen, positions, WholeSequences(mask))
        if count == len(known):
            known.append(states[0, -1])
    return head.out(states[0, -1])


#        chain      tree
TREES = {
    "chain": (3, (-1, 0, 1, 2, 3)),
    "tree": (2, (-1, 0, 1, 1, 2, 2, 3)),
    "root": (1, (-1, 0, 0, 0)),
}


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "qkv_bias": True}, {"window": 4}])
@torch.no_grad()
def test_each_path_of_ragged_rows_is_scored_as_its_whole_sequence(
    rope: str, options: dict[str, Any]
) -> None:
    head = head_of(rope=ROPES[rope], **options)
    cache, draw = KVCache(2), torch.Generator().manual_seed(1)
    texts: list[tuple[list[int], Tensor, int]] = []  # committed ids, features of all, offset
    places = [Placement(cache.open(4), (offset,)) for offset in (0, 9, 31)]
    trees, beside = list[TokenTree](), list[Tensor]()
    for place, committed, (chain, parents) in zip(places, (7, 1, 12), TREES.values(), strict=True):
        ids = torch.randint(VOCAB, (committed + len(parents),), generator=draw).tolist()
        features = torch.randn(committed + chain, HIDDEN, generator=draw, dtype=torch.float64)
        texts.append((ids, features, place.position_offsets[0]))
        # What is committed is read in two goes: the second over the first.
        for part in (slice(0, committed // 2), slice(committed // 2, committed)):
            if ids[part]:
                stands = TextPlaces(place.position_offsets).at(part.start, len(ids[part]))
                read_text(head, cache, place.row, ids[part], features[part], stands)
        nodes = len(parents)
        tree = TokenTree(tuple(ids[committed:]), parents, (1.0,) * nodes, ("",) * nodes)
        trees.append(tree)
        beside.append(features[committed:])
    chains = [chain for chain, _ in TREES.values()]
    rows = [place.row for place in places]
    scorer = EagleScorer(head, torch.cat(beside), dict(zip(rows, chains, strict=True)))
    first = [tree.keep(range(chain)) for tree, chain in zip(trees, chains, strict=True)]
    scorer.score(first, cache, places)
    written = dict(zip(places, chains, strict=True))
    while growing := [n for n, place in enumerate(places) if written[place] < trees[n].num_nodes]:
        level = []
        for n in growing:
            depths = trees[n].depths
            stop = max(k for k, d in enumerate(depths) if d == depths[written[places[n]]]) + 1
            level.append(trees[n].keep(range(stop)))
        own = [places[n] for n in growing]
        scores = scorer.score(level, cache, own, written=[written[place] for place in own])
        for n, tree, score in zip(growing, level, scores, strict=True):
            ids, features, offset = texts[n]
            committed = len(ids) - trees[n].num_nodes
            assert score.logits.shape[0] == tree.num_nodes - written[places[n]]
            for node, logits in enumerate(score.logits, start=written[places[n]]):
                path = [ids[committed + step] for step in tree.path_to(node)]
                expected = whole(head, [*ids[:committed], *path], features, offset)
                torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
            written[places[n]] = tree.num_nodes


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@torch.no_grad()
def test_a_block_is_the_layer_of_the_same_name_in_transformers(kind: str, rope: str) -> None:
    make, build = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }[kind]
    theirs = make(
        hidden_size=HIDDEN,
        intermediate_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_hidden_layers=1,
        vocab_size=VOCAB,
        max_position_embeddings=128,
        rope_parameters=dict(ROPES[rope]),
        attention_bias=True,
    )
    torch.manual_seed(2)
    model = build(theirs).double().eval()
    for weight in model.parameters():
        weight.normal_(0.0, 0.5)
    config = BlockConfig.read(theirs.to_dict(), who="test")
    block = DecoderBlock(config).double()
    block.load_state_dict(model.model.layers[0].state_dict())
    model.model.norm.weight.fill_(1.0)
    ids, positions = torch.randint(VOCAB, (2, 40)), torch.arange(40).expand(2, -1) + 50
    expected = model.model(ids, position_ids=positions, output_hidden_states=True)
    states = block(
        expected.hidden_states[0], Rotary(config)(positions, torch.float64), WholeSequences()
    )
    normed = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + config.rms_norm_eps)
    # transformers norms in float32.
    torch.testing.assert_close(normed, expected.last_hidden_state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rope", ROPES)
def test_a_config_is_read_as_it_was_written(rope: str) -> None:
    config = config_of(rope=ROPES[rope], qkv_bias=True, window=7, qk_norm=True)
    assert BlockConfig.read(config.as_json, who="test") == config


def test_a_head_counts_in_planes_where_its_rotations_are_of_that_type() -> None:
    config = config_of().as_json
    config["rope_scaling"] = {"rope_type": "default", "mrope_section": [2, 1, 1]}
    assert BlockConfig.read(config, who="test") == config_of()
    config["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 1, 1]}
    assert BlockConfig.read(config, who="test") == config_of(sections=(2, 1, 1))
    assert BlockConfig.read(config_of(sections=(2, 1, 1)).as_json, who="test").sections == (2, 1, 1)
    config["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 1]}
    with pytest.raises(ConfigError, match=r"mrope_section=\[2, 1\]; expected 4 in all"):
        BlockConfig.read(config, who="test")


def test_planes_turn_as_in_transformers() -> None:
    text = Qwen2_5_VLTextConfig(
        hidden_size=HIDDEN,
        num_attention_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
    )
    planes = torch.randint(50, (3, 2, 6))
    query, keys = torch.randn(2, 2, 6, 8), torch.randn(2, 1, 6, 8)
    cos, sin = Qwen2_5_VLRotaryEmbedding(text)(query, planes)
    expected = apply_rotary_pos_emb(query, keys, cos, sin)
    turn = Rotary(config_of(sections=(2, 1, 1)))(planes, torch.float32)
    torch.testing.assert_close((turn(query), turn(keys)), expected)
