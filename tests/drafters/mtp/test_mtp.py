"""The model's own layer for the tokens to come: what it says over its ragged cache, and where its
weights are found."""

from collections.abc import Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from heard_heads import Said, assert_heard, engine_of, listening, planes_of, requests_of
from matrix import model_of
from mtp_layers import NUMBERED, OWN, drawn, folder_of, mtp, published, write
from ragged import target_of
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
)
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

import mmspec
from mmspec.config import Config, DecodeConfig
from mmspec.drafters.eagle import session as eagle_session
from mmspec.drafters.eagle.drafter import BoundEagle
from mmspec.drafters.eagle.settings import LEAST_WINDOW
from mmspec.drafters.mtp import Mtp
from mmspec.drafters.mtp.layer import Turns
from mmspec.errors import ConfigError, ModelError
from mmspec.requests import Request
from mmspec.sweep import architectures
from mmspec.sweep.build import build
from mmspec.target import Target


@torch.no_grad()
def whole(
    layer: Any, requests: Sequence[Request], model: Any, states: Sequence[Tensor], said: Said
) -> Tensor:
    """(vocab,) by the layer over whole sequences, each token seeing those before it by attention of
    transformers' own."""
    known = len(said.text) - 1
    beside = list(states[-1][:known])
    ids = torch.tensor([*said.text[1:], *said.path])
    embeddings = model.get_input_embeddings().weight[ids]
    for count in range(known, len(ids) + 1):
        given = embeddings[:count].unsqueeze(0)
        positions = 1 + torch.arange(count).unsqueeze(0)
        planes = positions
        if "mrope_section" in layer.config.rope_parameters:
            planes = 1 + planes_of(model, requests, said)[:, :, :count]
        rotary = model.get_decoder().rotary_emb
        kinds = {}
        if "layer_type" in signature(rotary.forward).parameters:
            kinds["layer_type"] = layer.config.layer_types[0]
        turned = rotary(given, planes, **kinds)
        seen = torch.stack(beside[:count]).unsqueeze(0)
        reach = torch.arange(count)
        sees_all = (getattr(layer.config, "layer_types", None) or [""])[0] == "full_attention"
        window = None if sees_all else getattr(layer.config, "sliding_window", None)
        hidden = (reach > reach[:, None]) | (reach <= reach[:, None] - (window or count))
        mask = torch.zeros(1, 1, count, count, dtype=given.dtype)
        made = layer(
            given,
            seen,
            position_embeddings=turned,
            attention_mask=mask.masked_fill_(hidden, torch.finfo(given.dtype).min),
            position_ids=positions,
            past_key_values=None,
        )
        beside.append(made[0, -1])
    return model.get_output_embeddings()(beside[-1])


@pytest.mark.parametrize(
    ("family", "layouts", "options", "every", "within"),
    [
        ("llama", ["text"] * 3, {"top_k": 1, "min_confidence": 0.0}, 1, 1e-8),
        ("llama", ["text"] * 3, {"top_k": 3}, 4, 1e-8),
        ("mistral_sliding", ["text"] * 2, {"top_k": 2}, 3, 1e-8),
        # Whose norms compute in float32.
        ("gemma3_text", ["text"] * 2, {"top_k": 2}, 2, 1e-4),
        ("qwen3_next", ["text"] * 2, {"top_k": 2}, 1, 1e-4),
        ("qwen3_5", ["image_middle", "text", "image_last"], {"top_k": 3}, 2, 1e-4),
    ],
)
@pytest.mark.parametrize("chunk", [3, 64])  # that a proposal reads on the way
def test_each_node_is_scored_as_its_whole_text(
    family: str,
    layouts: list[str],
    options: dict[str, Any],
    every: int,
    within: float,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(eagle_session, "CHUNK", chunk)
    model = model_of(family, "float64")
    heard = listening(monkeypatch, every=every)
    drafter = Mtp(folder_of(model, knows=False), **{"min_confidence": 0.01, **options})
    requests = requests_of(family, layouts, "greedy")
    results = engine_of(family, drafter).generate(requests)
    expected = partial(whole, drawn(model), requests)
    assert_heard(family, expected, requests, results, heard, within=within)
    assert max(len(said.path) for said in heard) == 3


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
def test_one_that_knows_the_target_is_accepted(family: str) -> None:
    requests = requests_of(family, ["text"] * 3, "greedy")
    model = model_of(family, "float64")
    results = engine_of(family, mtp(model, min_confidence=0.0)).generate(requests)
    plain = engine_of(family, mtp(model)).generate(requests, speculate=False)
    assert [result.tokens for result in results] == [result.tokens for result in plain]
    unknowing = Mtp(folder_of(model, knows=False), min_confidence=0.0)
    guesses = engine_of(family, unknowing).generate(requests)
    accepted, guessed = (
        sum(result.stats.by_drafter["mtp"].accepted for result in each)
        for each in (results, guesses)
    )
    assert accepted > 2 * guessed and accepted > 5


# Models of families that transformers itself reads such layers of

_SHAPE = {
    "vocab_size": 112,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 256,
}


def deepseek() -> Any:
    ranks = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8}
    heads = {"num_key_value_heads": 4, "qk_nope_head_dim": 8, "v_head_dim": 16}
    torch.manual_seed(3)
    return DeepseekV3ForCausalLM(DeepseekV3Config(**_SHAPE, **ranks, **heads))


def glm() -> Any:
    torch.manual_seed(3)
    heads = {"num_key_value_heads": 2, "head_dim": 16, "use_qk_norm": True}
    return Glm4MoeForCausalLM(Glm4MoeConfig(**_SHAPE, **heads))


def mellum() -> Any:
    """Whose layer sees a window, and turns otherwise than those that see all."""
    config = CONFIG_MAPPING["mellum"]
    if not hasattr(config(), "num_mtp_layers"):
        pytest.skip("this transformers does not know of Mellum's layer")
    torch.manual_seed(3)
    kinds = ["full_attention", "sliding_attention"]
    more = {"num_experts": 4, "num_mtp_layers": 1, "layer_types": kinds, "sliding_window": 9}
    heads = {"num_key_value_heads": 2, "head_dim": 16}
    return AutoModelForCausalLM.from_config(config(**_SHAPE, **heads, **more))


def saved(model: Any, folder: Path) -> str:
    """With its layer among its weights, as DeepSeek and GLM publish them, and Mellum."""
    from safetensors.torch import load_file, save_file

    model.save_pretrained(folder)
    own = load_file(folder / "model.safetensors")
    layer = drawn(model)
    is_numbered = model.config.model_type != "mellum"
    shared = ("embed_tokens.weight", "shared_head.head.weight") if is_numbered else ()
    copies = {f"model.layers.2.{n}": own["model.embed_tokens.weight"].clone() for n in shared}
    save_file({**own, **published(model, layer, numbered=is_numbered), **copies},
              folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    return str(folder)


@pytest.mark.parametrize("make", [deepseek, glm, mellum])
def test_the_layer_is_found_where_the_target_is_from_and_says_what_transformers_says(
    make: Any, tmp_path: Path
) -> None:
    folder = saved(make(), tmp_path)
    engine = mmspec.load(folder, drafter="mtp", overrides={
        "decode.controller": "fixed", "drafter.mtp.min_confidence": 0.0,
        "drafter.mtp.top_k": 1, "drafter.mtp.max_depth": 1, "cache.prefix_bytes": 0})  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder)
    # Its pattern of weights to be left out is of the published depth.
    model._keys_to_ignore_on_load_unexpected = [r"model\.layers\.2\.|^mtp\."]
    theirs = MtpModel.from_pretrained(model)
    (bound,) = engine.drafters
    assert isinstance(bound, BoundEagle)
    for (name, own), (_, other) in zip(
        bound.head._layer.state_dict().items(),  # type: ignore[attr-defined]
        theirs.layers[0].state_dict().items(),
        strict=True,
    ):
        torch.testing.assert_close(own, other, rtol=0, atol=0, msg=name)
    prompt = torch.randint(3, 100, (1, 19), generator=torch.Generator().manual_seed(8))
    drafted: list[tuple[int, int]] = []
    propose = bound.propose_together

    def noted(sessions: Any, texts: Any, budget: int) -> Any:
        trees = propose(sessions, texts, budget)
        drafted.extend((len(texts[0]), tree.tokens[1]) for tree in trees)
        return trees

    bound.propose_together = noted  # type: ignore[method-assign]
    result = engine.generate({"input_ids": prompt}, max_new_tokens=8, ignore_eos=True)
    text = torch.tensor([[*prompt[0].tolist(), *result.tokens]])
    assert len(drafted) > 3
    with torch.no_grad():
        states = model(text, output_hidden_states=True).hidden_states[-1]
        for length, token in drafted:
            said, _, _ = theirs(
                text[:, 1:length],
                states[:, : length - 1],
                torch.ones(1, length - 1, dtype=torch.long),
                torch.arange(1, length).unsqueeze(0),
                MtpCache(config=model.config.get_mtp_config()),
            )
            assert said[0, 0] == token, f"behind {length} tokens"


def check_drafts(engine: mmspec.Engine) -> None:
    """That it does, and says what plain decoding says."""
    ids = torch.randint(3, 60, (1, 14), generator=torch.Generator().manual_seed(4))
    options: dict[str, Any] = {"max_new_tokens": 8, "ignore_eos": True, "reuse": False}
    found = engine.generate({"input_ids": ids}, **options)
    plain = engine.generate({"input_ids": ids}, speculate=False, **options)
    assert found.tokens == plain.tokens
    assert found.stats.by_drafter["mtp"].proposed > 20


@pytest.mark.parametrize("kind", ["deepseek_v32", "glm_moe_dsa", "glm_ocr", "mellum"])
def test_layers_that_choose_what_they_see_or_turn_by_their_kind_draft(
    kind: str, tmp_path: Path
) -> None:
    (architecture,) = architectures([kind])
    model = build(architecture, torch.float32)
    folder = write(tmp_path, published(model, drawn(model), numbered=True))
    config = Config(decode=DecodeConfig(controller="fixed"))
    engine = mmspec.load(model, config=config, drafter=[Mtp(folder, min_confidence=0.0)])
    check_drafts(engine)


# What families call the weights of such a layer, beside what MtpLayer calls them
_PUBLISHED: dict[str, tuple[str, dict[str, str]]] = {
    "mimo_v2_flash": ("model.mtp.layers.0.", {
        "mtp_block.post_attention_layernorm.": "pre_mlp_layernorm.",
        "mtp_block.self_attn.sinks": "self_attn.attention_sink_bias",
        "mtp_block.": "", "post_norm.": "final_layernorm.",
    }),
    "ernie4_5_moe": ("model.", {
        "mtp_block.": "mtp_block.0.", "enorm.": "mtp_emb_norm.0.",
        "hnorm.": "mtp_hidden_norm.0.", "eh_proj.": "mtp_linear_proj.0.",
    }),
    "exaone_moe": ("mtp.", OWN),
    "hy_v3": ("model.layers.4.", {
        "mtp_block.mlp.e_score_correction_bias": "mlp.expert_bias",
        "mtp_block.mlp.gate.": "mlp.router.gate.", **NUMBERED, "post_norm.": "final_layernorm.",
    }),
    "bailing_hybrid": ("model.layers.4.", {
        "mtp_block.mlp.gate.e_score_correction_bias": "mlp.gate.expert_bias",
        "mtp_block.self_attn.o_proj.": "attention.dense.", "mtp_block.self_attn.": "attention.",
        **NUMBERED, "post_norm.": "final_layernorm.",
    }),
}  # fmt: skip
_DENSE, _SPARSE = "mtp_block.mlp.gate_proj.weight", "mtp_block.mlp.experts.gate_up_proj"
_HAS = {
    "mimo_v2_flash": {_DENSE, "mtp_block.self_attn.sinks", "post_norm.weight"},
    "ernie4_5_moe": {_DENSE},
    "exaone_moe": {_DENSE, "post_norm.weight"},
    "hy_v3": {_SPARSE, "post_norm.weight"},
    "bailing_hybrid": {_SPARSE, "post_norm.weight"},
}


@pytest.mark.parametrize("kind", _PUBLISHED)
def test_a_layer_is_known_by_what_its_family_calls_its_weights(kind: str, tmp_path: Path) -> None:
    """Whether it has experts, or a norm behind it, and which tokens it sees, its weights say."""
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    (architecture,) = architectures([kind])
    model = build(architecture, torch.float32)
    layer = drawn(model, has=_HAS[kind])
    expected = layer.state_dict()
    assert _HAS[kind] <= expected.keys()
    assert ("post_norm.weight" in expected) == (kind != "ernie4_5_moe")
    begin, names = _PUBLISHED[kind]
    tensors = published(model, layer, begin=begin, names=names)
    if kind == "hy_v3":  # a copy of the target's own
        tensors["model.layers.4.shared_head.weight"] = torch.ones(2, 2)
    if kind in ("mimo_v2_flash", "exaone_moe"):  # one for each depth
        more = {
            name.replace("layers.0.", "layers.1."): 0 * weight for name, weight in tensors.items()
        }
        tensors = {**more, **tensors}
    config = Config(decode=DecodeConfig(controller="fixed"))
    drafter = Mtp(write(tmp_path, tensors), min_confidence=0.0)
    engine = mmspec.load(model, config=config, drafter=[drafter])
    (bound,) = engine.drafters
    for name, weight in bound.head._layer.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(weight, expected[name]), name
    check_drafts(engine)


@pytest.mark.parametrize("kind", ["dots1", "glm4v_moe"])
def test_where_a_config_says_from_which_layer_on_experts_are_its_weights_say(kind: str) -> None:
    (architecture,) = architectures([kind])
    model = build(architecture, torch.float32)
    for weight in (_DENSE, _SPARSE):
        assert weight in drawn(model, has={weight}).state_dict()


def test_generate_of_transformers_takes_it(tmp_path: Path) -> None:
    """By its own switch, also of batches, which its own drafts by such layers do not take."""
    model = AutoModelForCausalLM.from_pretrained(saved(glm(), tmp_path)).eval()
    ids = torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(9))
    options: dict[str, Any] = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
    calls: list[int] = []
    propose = BoundEagle.propose_together

    def noted(self: BoundEagle, *args: Any) -> Any:
        calls.append(self.name == "mtp")
        return propose(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoundEagle, "propose_together", noted)
        found = model.generate(
            ids, custom_generate=mmspec.custom_generate, use_mtp=True, speculate=True, **options
        )
    assert torch.equal(found, model.generate(ids, **options))
    assert calls and all(calls)


def test_only_its_own_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint may be of hundreds of GB."""
    from mmspec.drafters.mtp import checkpoint

    folder = saved(glm(), tmp_path)
    read: list[str] = []
    whole = checkpoint.HeadFolder.read

    def noted(*args: Any, **options: Any) -> Any:
        found = whole(*args, **options)
        read.extend(found.tensors)
        return found

    monkeypatch.setattr(checkpoint.HeadFolder, "read", noted)
    mmspec.load(folder, drafter="mtp")
    assert read and all(name.startswith("model.layers.2.") for name in read)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_its_weights_are_of_the_dtypes_of_the_targets_own(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    """The biases by which experts are chosen stay in float32: rounded, others would be."""
    folder = saved(deepseek(), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    head: Any = Mtp().for_target(Target(model), None).head
    block, own = head._layer.mtp_block.state_dict(), model.model.layers[-1].state_dict()
    assert {weight.dtype for weight in own.values()} == {dtype, torch.float32}
    assert {name: w.dtype for name, w in block.items()} == {n: w.dtype for n, w in own.items()}
    bias = "mlp.gate.e_score_correction_bias"
    assert torch.equal(block[bias], drawn(deepseek()).mtp_block.state_dict()[bias])
    config = Config(decode=DecodeConfig(controller="fixed"))
    engine = mmspec.load(model, config=config, drafter=[Mtp(min_confidence=0.0)])
    result = engine.generate({"input_ids": torch.arange(3, 20)[None]}, max_new_tokens=5, seed=1)
    assert result.stats.by_drafter["mtp"].proposed > 5


def test_rotations_are_brought_to_where_the_layer_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model over several devices, its rotations may be made on the first one, and its lm_head
    lies on the last."""
    model = FAMILIES["llama"].build(torch.float32)
    rotary, here = model.get_decoder().rotary_emb, torch.zeros(1, 2, 8)
    monkeypatch.setattr(rotary, "forward", lambda states, positions: (here, here))
    for made in Turns(model, model.config)(here.to("meta"), torch.zeros(1, 2)):
        assert made.device.type == "meta"
    monkeypatch.setattr(rotary, "forward", lambda states, positions: here)  # complex, of some
    made = Turns(model, model.config)(here.to("meta"), torch.zeros(1, 2))
    assert made.device.type == "meta" and made.shape == here.shape


def test_the_targets_rotations_hear_of_no_draft() -> None:
    """Those that stretch with the longest text they met turn every key of the model otherwise."""
    model = FAMILIES["llama"].build(torch.float64)
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    model.config.rope_parameters = rope
    model.config.max_position_embeddings = 16
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    before = model.model.rotary_emb.inv_freq.clone()
    turns = Turns(model, model.config)
    cos, _ = turns(torch.ones(1, 40, 8, dtype=torch.float64), torch.arange(40).unsqueeze(0))
    assert cos.shape[1] == 40 and torch.equal(model.model.rotary_emb.inv_freq, before)
    del model.model.rotary_emb  # as of a model that does without
    assert Turns(model, model.config)(torch.ones(1, 2, 8), torch.arange(2).unsqueeze(0)) is None


# Mistakes


def test_what_has_no_such_layer_says_so(tmp_path: Path) -> None:
    model = model_of("llama", "float64")
    with pytest.raises(ModelError, match=r"no layer for the tokens to come.*layers\.2\.eh_proj"):
        mmspec.load(model, drafter=[Mtp(write(tmp_path, {"other": torch.ones(1)}))])
    built = FAMILIES["llama"].build(torch.float64)
    built.config.name_or_path = ""
    with pytest.raises(ConfigError, match=r'drafter\.mtp\.path="": the target was not loaded from'):
        Mtp().for_target(Target(built), None)


def test_a_layer_of_another_target_says_so(tmp_path: Path) -> None:
    for family in ("qwen3_5", "llama"):  # of the first most layers keep a running state
        tensors = published(model_of(family, "float64"), drawn(model_of(family, "float64")))
        tensors["mtp.fc.weight"] = torch.ones(3, 4)
        with pytest.raises(ConfigError, match=r"eh_proj.weight has the shape \(3, 4\), expected"):
            Mtp(write(tmp_path, tensors)).for_target(target_of(family), None)
    tensors["mtp.fc.weight_scale_inv"] = torch.ones(1)
    with pytest.raises(ConfigError, match=r"not known: eh_proj.weight_scale_inv"):
        Mtp(write(tmp_path, tensors)).for_target(target_of("llama"), None)


def test_weights_in_fp8_are_multiplied_by_the_scales_of_their_blocks(tmp_path: Path) -> None:
    model = model_of("llama", "float64")
    layer = drawn(model)
    own = published(model, layer)
    (tmp_path / "own").mkdir()
    tensors: dict[str, Tensor] = {}
    for name, weight in own.items():
        tensors[name] = weight
        if weight.ndim == 2:
            rows, columns = (-(-size // 48) for size in weight.shape)  # the last blocks are cut off
            scale = torch.rand(rows, columns) + 0.5
            each = torch.empty_like(weight, dtype=torch.float32)
            for row in range(rows):
                for column in range(columns):
                    place = (slice(48 * row, 48 * row + 48), slice(48 * column, 48 * column + 48))
                    each[place] = scale[row, column]
            packed = (weight / each).to(torch.float8_e4m3fn)
            tensors |= {name: packed, f"{name}_scale_inv": scale}
            own[name] = (packed.float() * each).bfloat16()
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [48, 48]}}
    folder = write(tmp_path, tensors, config)
    bound = Mtp(folder).for_target(target_of("llama"), None)
    expected = Mtp(write(tmp_path / "own", own)).for_target(target_of("llama"), None)
    for (name, weight), there in zip(
        bound.head._layer.state_dict().items(),  # type: ignore[attr-defined]
        expected.head._layer.state_dict().values(),  # type: ignore[attr-defined]
        strict=True,
    ):
        assert torch.equal(weight, there), name


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        (
            "falcon_h1",
            "the layer of FalconH1ForCausalLM keeps a running state, which cannot branch",
        ),
        ("lfm2", "transformers has no such layer of Lfm2ForCausalLM (.*norm"),
    ],
)
def test_a_model_that_can_have_no_such_layer_says_so(
    family: str, reason: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, {"mtp.fc.weight": torch.ones(64, 128)})
    with pytest.raises(ModelError, match=reason.replace("(", r"\(")):
        Mtp(folder).for_target(target_of(family), None)


def test_a_layer_that_expects_more_than_a_state_and_a_token_says_so_at_load(tmp_path: Path) -> None:
    """Hyper-connections: a layer reads several streams of states."""
    (architecture,) = architectures(["hy_v4"])
    model = build(architecture, torch.float32)
    folder = write(tmp_path, published(model, drawn(model), numbered=True))
    with pytest.raises(ModelError, match=r"layer of HYV4ForCausalLM does not compute by a state"):
        mmspec.load(model, drafter=[Mtp(folder)])


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), MemoryError()])
def test_a_layer_that_there_is_no_memory_for_is_not_told_to_be_another(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise error

    monkeypatch.setattr(BoundEagle, "read", read)
    model = model_of("llama", "float64")
    with pytest.raises(type(error)) as caught:
        Mtp(folder_of(model, knows=False)).for_target(Target(model), None)
    assert caught.value is error


def test_what_is_tried_at_load_is_kept_nowhere() -> None:
    bound = mtp(model_of("llama", "float64")).for_target(target_of("llama"), None)
    assert bound.cache.num_bytes == 0 and not bound.cache.rows


def test_settings_that_make_no_sense_are_refused() -> None:
    Mtp(window=LEAST_WINDOW)
    for wrong in ({"dtype": "int3"}, {"window": LEAST_WINDOW - 1}):
        with pytest.raises(ConfigError, match=f"drafter.mtp.{next(iter(wrong))}="):
            Mtp(**wrong)


def test_experts_that_lack_a_part_are_named(tmp_path: Path) -> None:
    model = model_of("qwen3_moe", "float64")
    tensors = published(model, drawn(model))
    del tensors["mtp.layers.0.mlp.experts.1.up_proj.weight"]
    with pytest.raises(ModelError, match=r"mlp\.experts: expected a gate_proj, an up_proj and"):
        Mtp(write(tmp_path, tensors)).for_target(Target(model), None)
