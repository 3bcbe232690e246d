"""Which row of a batch an image belongs to, from pixels and from features made already."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from families import FAMILIES, prompt_inputs
from families.vision import IMAGE_TOKEN as I
from torch import Tensor
from transformers.utils import ModelOutput

from mmspec.encoders.outputs import FeatureError
from mmspec.errors import InputError
from mmspec.inputs.rows import split_rows
from mmspec.state import MediaSpan

ROWS = torch.tensor([[0, 0, 5, I, I, 6], [7, I, I, 8, I, I], [0, 0, 0, 0, 5, 9]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]])


def config(family: str = "llava") -> Any:
    return FAMILIES[family].build(torch.float32).config


def split(family: str = "llava", **inputs: Any) -> list[dict[str, Tensor]]:
    prompts = split_rows(ROWS, {"attention_mask": MASK, **inputs}, config(family))
    return [dict(prompt.model_inputs) for prompt in prompts]


@dataclass
class Encoded(ModelOutput):
    last_hidden_state: Tensor | None = None
    pooler_output: Any = None
    deepstack_features: Any = None


def encoded(output: ModelOutput) -> list[Any]:
    """Each row's part."""
    given = {"attention_mask": MASK, "mm_encoder_outputs": {"image": output}}
    return [prompt.encoded.get("image") for prompt in split_rows(ROWS, given, config())]


def test_padding_is_left_out_and_media_are_found() -> None:
    types = torch.arange(18).reshape(3, 6)
    prompts = split_rows(
        ROWS,
        {"attention_mask": MASK, "token_type_ids": types, "use_cache": True},
        config(),
    )
    assert [p.token_ids.tolist() for p in prompts] == [
        [5, I, I, 6],
        [7, I, I, 8, I, I],
        [5, 9],
    ]
    assert prompts[1].media == (MediaSpan("image", 1, 3), MediaSpan("image", 4, 6))
    assert [p.model_inputs["token_type_ids"].tolist() for p in prompts] == [
        [[2, 3, 4, 5]],
        [[6, 7, 8, 9, 10, 11]],
        [[16, 17]],
    ]


def test_planes_of_positions_lose_the_padding_too() -> None:
    planes = torch.arange(4 * 18).reshape(4, 3, 6)
    first, _, last = split(position_ids=planes)
    assert first["position_ids"].shape == (4, 1, 4) and last["position_ids"].shape == (4, 1, 2)
    assert first["position_ids"][1, 0].tolist() == [20, 21, 22, 23]


def test_images_of_one_size_follow_the_placeholders() -> None:
    """Of one tile each, of as many as their size says, or of patches, some of which are padding."""
    tiles = torch.arange(3.0).view(3, 1, 1, 1, 1)
    for given in (
        {"pixel_values": tiles},
        {"pixel_values": tiles, "image_sizes": torch.full((3, 2), 28)},
        {"pixel_values": tiles.flatten(1), "pixel_attention_mask": torch.ones(3, 1)},
    ):
        first, second, third = split("llava_next", **given)
        assert first["pixel_values"].flatten().tolist() == [0.0]
        assert second["pixel_values"].flatten().tolist() == [1.0, 2.0]
        assert not third


def test_videos_have_placeholders_of_their_own_or_images() -> None:
    first, second, third = split(pixel_values_videos=torch.arange(3.0))
    assert first["pixel_values_videos"].tolist() == [0.0]
    assert second["pixel_values_videos"].tolist() == [1.0, 2.0] and not third
    rows = torch.tensor([[I, 9, 8, 5], [I, 8, 6, 8]])
    own = SimpleNamespace(model_type="own", image_token_id=I, video_token_id=8)
    given = {"pixel_values": torch.arange(2), "pixel_values_videos": torch.arange(3)}
    first, second = (dict(one.model_inputs) for one in split_rows(rows, given, cast(Any, own)))
    assert first["pixel_values"].tolist() == [0] and first["pixel_values_videos"].tolist() == [0]
    assert second["pixel_values_videos"].tolist() == [1, 2]


def test_images_beside_the_tokens_are_of_rows_that_have_any() -> None:
    ratios = torch.tensor([[1, 0], [1, 2], [0, 0]])
    first, second, third = split("mllama", pixel_values=ratios * 10, aspect_ratio_ids=ratios)
    assert first["pixel_values"].tolist() == [[10]] and second["aspect_ratio_ids"].shape == (1, 2)
    assert not third


@pytest.mark.parametrize("name", ["image_grid_thw", "image_grid_hw"])
def test_patches_follow_their_grids(name: str) -> None:
    """With what else there is a patch or a medium, by whatever name."""
    grids = torch.tensor([[1, 2, 4], [1, 4, 2], [1, 2, 4]])  # 8 patches, 2 tokens each
    grids = grids if name == "image_grid_thw" else grids[:, 1:]
    given = {"pixel_values": torch.arange(24), name: grids}
    beside = {"image_of_patch": torch.arange(24), "image_scales": torch.arange(3)}
    first, second, third = split("qwen2_vl", **given, **beside)
    assert first["pixel_values"].tolist() == list(range(8))
    assert second["pixel_values"].tolist() == list(range(8, 24))
    assert torch.equal(second["pixel_values"], second["image_of_patch"])
    assert torch.equal(second[name], grids[1:]) and second["image_scales"].tolist() == [1, 2]
    assert not third


@pytest.mark.parametrize("merges", [None, torch.tensor([2, 2, 1])])
def test_patches_are_as_many_tokens_as_the_model_makes_of_them(merges: Tensor | None) -> None:
    """A medium may say so itself; else all are merged alike."""
    grids = torch.tensor([[1, 2, 4], [1, 2, 4], [1, 2, 4 if merges is None else 1]])
    given = {"pixel_values": torch.arange(int(grids.prod(1).sum())), "image_grid_thw": grids}
    if merges is not None:
        given["image_merge_sizes"] = merges
    named = SimpleNamespace(model_type="own", image_token_id=I, vision_config=SimpleNamespace())
    prompts = split_rows(ROWS, {"attention_mask": MASK, **given}, cast(Any, named))
    first, second, third = (dict(prompt.model_inputs) for prompt in prompts)
    assert first["pixel_values"].tolist() == list(range(8))
    assert second["pixel_values"].tolist() == list(range(8, int(grids.prod(1).sum())))
    assert (merges is None) or second["image_merge_sizes"].tolist() == [2, 1]
    assert not third


@pytest.mark.parametrize("merge", [{}, {"spatial_merge_size": 2}])
def test_an_image_that_no_row_has_a_place_for_is_refused(merge: dict[str, int]) -> None:
    """Also where how many tokens it fills is told by the places there are: it fills some."""
    named = SimpleNamespace(
        model_type="own", image_token_id=I, vision_config=SimpleNamespace(**merge)
    )
    given = {"pixel_values": torch.arange(8), "image_grid_thw": torch.tensor([[1, 2, 4]])}
    with pytest.raises(InputError, match="no placeholders"):
        split_rows(torch.tensor([[5, 6], [7, 8]]), given, cast(Any, named))


@pytest.mark.parametrize("name", ["spatial_shapes", "image_position_ids"])
def test_images_of_several_sizes_need_a_row_each(name: str) -> None:
    """Patches are padded to the largest image's: how many tokens each fills they do not say."""
    sizes = torch.tensor([[2, 1], [2, 2]])
    first, second, third = split_rows(
        torch.tensor([[0, 5, I, I, 6], [7, I, I, I, I], [0, 0, 0, 5, 9]]),
        {
            "attention_mask": torch.tensor([[0, 1, 1, 1, 1], [1] * 5, [0, 0, 0, 1, 1]]),
            "pixel_values": torch.arange(2.0).expand(4, 2).T,
            name: sizes,
        },
        config(),
    )
    assert first.model_inputs["pixel_values"].tolist() == [[0.0] * 4]
    assert second.model_inputs[name].tolist() == [[2, 2]] and not third.model_inputs
    with pytest.raises(InputError, match="different sizes"):
        split(pixel_values=torch.zeros(3, 4), **{name: torch.cat([sizes, sizes[:1]])})


def test_a_medium_for_each_row_is_the_row_s_however_its_tokens_lie() -> None:
    """MOSS-Transcribe-Diarize writes the seconds between a recording's tokens."""
    rows = torch.tensor(
        [[5, 9, 9, 2, 9, 9, 4, 9], [0, 0, 0, 0, 0, 9, 9, 9], [0, 0, 0, 0, 0, 0, 5, 6]]
    )
    own = SimpleNamespace(model_type="own", audio_token_id=9)
    given = {"attention_mask": (rows > 0).long(), "input_features": torch.arange(2.0)}
    frames = torch.tensor([[1, 1], [1, 0]])
    first, second, third = split_rows(rows, {**given, "padding_mask": frames}, cast(Any, own))
    assert first.model_inputs["input_features"].tolist() == [0.0] and not third.model_inputs
    assert second.model_inputs["padding_mask"].tolist() == [[1, 0]]


def test_recordings_of_several_lengths_are_not_taken_as_alike() -> None:
    """Three of 4, 1 and 1 tokens, then one of 6: not two for each row. Phi-4-multimodal
    says it, and Granite Speech, by a mask of tokens."""
    rows = torch.tensor([[9, 9, 9, 9, 9, 9], [9, 9, 9, 9, 9, 9]])
    own = SimpleNamespace(model_type="own", audio_token_id=9)
    lengths = torch.tensor([4, 1, 1, 6])
    frames = 2 * lengths[:, None] > torch.arange(12)
    masks = ("input_features_mask", "feature_attention_mask", "input_values_mask", "padding_mask")
    for name, sizes in {
        **dict.fromkeys(masks, frames),
        "chunk_sample_lengths": 9 * lengths,
    }.items():
        given = {"input_features": torch.zeros(4, 6), name: sizes}
        for count in (None, untold):
            with pytest.raises(InputError, match="4 audios of different sizes"):
                split_rows(rows, given, cast(Any, own), count=count)
    heard, tokens = torch.arange(4.0), frames[:, ::2]
    for told in (
        {"audio_input_features": heard, "audio_embed_sizes": lengths},
        {"input_features": heard, "input_features_mask": tokens},
    ):
        first, second = split_rows(rows, told, cast(Any, own))
        features, sizes = told
        assert first.model_inputs[features].tolist() == [0.0, 1.0, 2.0]
        assert torch.equal(second.model_inputs[sizes], told[sizes][3:])


def untold(*_: object) -> int:
    raise FeatureError("its encoder stands in its forward")


def test_images_of_one_prompt_are_its_own_whatever_their_sizes() -> None:
    """However often it is asked: what `generate` repeats one by one is there once for each."""
    ids, pixels, sizes = torch.tensor([[7, I, I, I, 8]]), torch.arange(2.0), SIZES[:2]
    given = {
        "pixel_values": pixels.repeat_interleave(2),
        "image_sizes": sizes.repeat(1, 2).view(4, 2),
    }
    for prompt in split_rows(ids.repeat(2, 1), given, config("llava_next"), repeats=2):
        assert torch.equal(prompt.model_inputs["pixel_values"], pixels)
        assert torch.equal(prompt.model_inputs["image_sizes"], sizes)


def test_rows_of_images_stay_rows() -> None:
    pixels, mask = torch.arange(6).reshape(3, 2, 1, 1, 1), torch.ones(3, 2, 1, 1)
    first, second, third = split("smolvlm", pixel_values=pixels, pixel_attention_mask=mask)
    assert first["pixel_values"].flatten().tolist() == [0, 1]
    assert second["pixel_attention_mask"].shape == (1, 2, 1, 1)
    assert not third


def test_one_padded_row_of_images_beside_its_tokens_loses_the_padding() -> None:
    found = prompt_inputs(FAMILIES["mllama"], "image_middle")
    ids, seen = found["input_ids"], found["cross_attention_mask"]
    padded = {
        **found,
        "attention_mask": torch.nn.functional.pad(torch.ones_like(ids), (3, 0)),
        "cross_attention_mask": torch.nn.functional.pad(seen, (0, 0, 0, 0, 3, 0)),
    }
    padded_ids = torch.nn.functional.pad(padded.pop("input_ids"), (3, 0))
    (prompt,) = split_rows(padded_ids, padded, config("mllama"))
    assert torch.equal(prompt.token_ids, ids[0])
    assert torch.equal(prompt.model_inputs["cross_attention_mask"], seen)
    assert torch.equal(prompt.model_inputs["pixel_values"], found["pixel_values"])


def test_the_number_of_images_a_row_is_believed() -> None:
    counts = torch.tensor([1, 2, 0])
    first, second, _ = split(
        "llava_onevision", pixel_values=torch.arange(3), batch_num_images=counts
    )
    assert first["pixel_values"].tolist() == [0] and first["batch_num_images"].tolist() == [1]
    assert second["pixel_values"].tolist() == [1, 2]
    assert second["batch_num_images"].tolist() == [2]


def test_features_made_already_follow_the_placeholders() -> None:
    features = [torch.full((2, 4), float(image)) for image in range(3)]
    deep = [tuple(feature + 10 * layer for feature in features) for layer in (1, 2)]
    output = Encoded(pooler_output=features, deepstack_features=deep)
    first, second, third = encoded(output)
    assert isinstance(second, Encoded) and third is None
    assert first.pooler_output[0][:, 0].tolist() == [0, 0]
    assert second.pooler_output[0][:, 0].tolist() == [1, 1, 2, 2]
    layers = [layer[0][:, 0].tolist() for layer in second.deepstack_features]
    assert layers == [[11, 11, 12, 12], [21, 21, 22, 22]]


def test_features_of_numbered_layers_alone_follow_the_placeholders() -> None:
    """Granite 4 Vision: nothing is put in the placeholders' place."""
    layers = [(n, [torch.full((2, 4), float(n + image)) for image in range(3)]) for n in (30, 0)]
    first, second, third = encoded(Encoded(deepstack_features=layers))
    for row, expected in ((first, [30, 30]), (second, [31, 31, 32, 32])):
        (own, deep), (other, _) = row.deepstack_features
        assert (own, other) == (30, 0) and deep[0][:, 0].tolist() == expected
    assert third is None


def test_features_go_to_the_rows_in_the_form_that_they_have() -> None:
    """Stacked, with an empty list of deeper layers, or under another name."""
    features = torch.arange(3.0)[:, None, None].expand(3, 2, 4)
    for output in (
        Encoded(pooler_output=features, deepstack_features=[]),
        Encoded(last_hidden_state=features),
    ):
        first, second, third = encoded(output)
        name = "last_hidden_state" if output.pooler_output is None else "pooler_output"
        assert first[name][..., 0].tolist() == [[0, 0]] and third is None
        assert second[name][..., 0].tolist() == [[1, 1, 2, 2]]


def test_of_one_prompt_what_was_encoded_is_taken_as_it_is() -> None:
    output = ModelOutput(only="the model knows")
    inputs = {"mm_encoder_outputs": {"image": output, "video": None}}
    (prompt,) = split_rows(ROWS[:1, 2:], inputs, config())
    assert prompt.encoded == {"image": output}
    with pytest.raises(InputError, match="images of a batch of 3"):
        encoded(output)


def test_what_stands_beside_media_that_were_encoded_is_done_with() -> None:
    """Qwen2.5-VL's seconds a frame, of which its positions were made."""
    made = {"image": Encoded(pooler_output=torch.zeros(6, 4)), "video": None}
    given = {"attention_mask": MASK, "mm_encoder_outputs": made}
    for prompt in split_rows(ROWS, {**given, "image_scales": torch.ones(3)}, config()):
        assert not prompt.model_inputs
    for name in ("second_per_grid_ts", "adapter_states"):
        with pytest.raises(InputError, match=name):
            split_rows(ROWS, {**given, name: torch.ones(3)}, config())


def test_a_name_of_an_image_is_an_images_whatever_else_it_says() -> None:
    """Three images of rows (2, 1), three recordings of rows (1, 2)."""
    rows = torch.tensor([[I, 1, I, 2, 9, 3], [I, 1, 9, 2, 9, 3]])
    own = SimpleNamespace(model_type="own", image_token_id=I, audio_token_id=9)
    names = ("pixel_values", "image_padding_mask", "input_features", "padding_mask")
    first, second = split_rows(rows, dict.fromkeys(names, torch.arange(3)), cast(Any, own))
    assert [first.model_inputs[name].tolist() for name in names] == [[0, 1]] * 2 + [[0]] * 2
    assert [second.model_inputs[name].tolist() for name in names] == [[2]] * 2 + [[1, 2]] * 2


def test_patches_are_merged_as_there_are_tokens_where_no_config_says_how() -> None:
    own = SimpleNamespace(model_type="own", image_token_id=I)
    grids = torch.tensor([[2, 2], [2, 2], [2, 2]])  # 4 patches, 2 tokens each
    inputs = {"attention_mask": MASK, "pixel_values": torch.arange(12), "image_grid_hw": grids}
    prompts = split_rows(ROWS, inputs, cast(Any, own))
    pixels = [prompt.model_inputs.get("pixel_values") for prompt in prompts]
    assert [None if one is None else one.tolist() for one in pixels] == [
        [0, 1, 2, 3],
        list(range(4, 12)),
        None,
    ]


def test_pixels_without_any_placeholder_are_refused() -> None:
    """A model that reads them elsewhere (GIT) gives each row its own; it was given none."""
    with pytest.raises(InputError, match="2 images, of which 2 have no placeholders"):
        split_rows(torch.full((2, 4), 5), {"pixel_values": torch.zeros(2, 3)}, config())


SIZES = torch.tensor([[28, 28], [28, 56], [56, 56]])


@pytest.mark.parametrize(
    ("family", "inputs", "message"),
    [
        ("llava", {"attention_mask": MASK[:, 1:]}, "the whole prompt"),
        ("llava", {"position_ids": MASK.cumsum(1).flip(1)}, "go up by one"),
        ("llava", {"position_ids": torch.zeros(5, MASK.shape[1])}, "got position_ids"),
        ("llava", {"adapter_states": torch.zeros(5, 2)}, "adapter_states"),
        ("llava", {"pixel_values": torch.zeros(4)}, "different sizes"),
        ("llava", {"pixel_values": SIZES, "image_scale": torch.tensor(2.0)}, "image_scale"),
        ("llava_next", {"pixel_values": torch.zeros(3), "image_sizes": SIZES}, "different sizes"),
        (
            "qwen2_vl",
            {"pixel_values": torch.zeros(12), "image_grid_thw": torch.tensor([[1, 3, 4]])},
            "do not fill",
        ),
        (
            "qwen2_vl",
            {"pixel_values": torch.zeros(32), "image_grid_thw": torch.tensor([[1, 2, 4]] * 4)},
            "no placeholders",
        ),
    ],
)
def test_what_belongs_to_no_row_is_refused(
    family: str, inputs: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        split(family, **inputs)
