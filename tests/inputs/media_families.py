"""Real processors of several families, built without a network, weights or torchvision."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from transformers import (
    Gemma3Config,
    Idefics3Config,
    LlavaConfig,
    MllamaConfig,
    PaliGemmaConfig,
    PreTrainedConfig,
    ProcessorMixin,
    Qwen2VLConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.mllama.processing_mllama import MllamaProcessor
from transformers.models.paligemma.processing_paligemma import PaliGemmaProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from inputs.text_families import byte_level, sentencepiece_bpe
from inputs.video_stand_in import FrameCounter, with_video

INPUT_NAMES = ["input_ids", "attention_mask"]
GEMMA_NAMES: dict[str, object] = {
    **{f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad")},
    "model_input_names": INPUT_NAMES,
}
SIZE = {"height": 28, "width": 28}
_PARTS = (
    "{% for message in messages %}OPEN"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE{% elif part.type == 'video' %}VIDEO"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}CLOSE"
    "{% endfor %}{% if add_generation_prompt %}START{% endif %}"
)


@dataclass(frozen=True)
class MediaFamily:
    """A processor, its model's config, and what a 28x28 image becomes."""

    processor: ProcessorMixin
    config: PreTrainedConfig
    num_placeholders: int  # tokens of one 28x28 image
    inputs: tuple[str, ...]  # model inputs that must be there
    attack: tuple[str, ...]  # strings of media and control tokens of this family


@cache
def build_family(name: str) -> MediaFamily:
    """The processor of a family; shared, since building takes a moment."""
    return FAMILIES[name]()


def _template(**words: str) -> str:
    text = _PARTS
    for word, value in words.items():
        text = text.replace(word.upper(), value)
    return text


def _qwen2_vl() -> MediaFamily:
    tokenizer = byte_level(
        (
            *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
            *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
        ),
        eos_token="<|im_end|>",
        model_input_names=INPUT_NAMES,
    )
    processor = with_video(
        Qwen2VLProcessor,
        video_processor=FrameCounter(),
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=7, merge_size=2, min_pixels=196, max_pixels=784
        ),
        tokenizer=tokenizer,
        chat_template=_template(
            open="<|im_start|>{{ message.role }}\n",
            image="<|vision_start|><|image_pad|><|vision_end|>",
            video="<|vision_start|><|video_pad|><|vision_end|>",
            close="<|im_end|>\n",
            start="<|im_start|>assistant\n",
        ),
    )
    config = Qwen2VLConfig(
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
    )
    attack = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|im_start|>", "<|im_end|>")
    return MediaFamily(processor, config, 4, ("pixel_values", "image_grid_thw"), attack)


def _llava() -> MediaFamily:
    tokenizer = sentencepiece_bpe(
        ("<unk>", "<s>", "</s>", "<pad>", "<image>"),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_input_names=INPUT_NAMES,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=SIZE),
        tokenizer=tokenizer,
        patch_size=7,
        vision_feature_select_strategy="full",
        chat_template=_template(
            open="{{ message.role }}: ", image="<image>\n", video="", close="\n", start="assistant:"
        ),
    )
    config = LlavaConfig(image_token_index=tokenizer.convert_tokens_to_ids("<image>"))
    return MediaFamily(processor, config, 16, ("pixel_values",), ("<image>", "<s>", "</s>"))


def _idefics3() -> MediaFamily:
    tiles = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
    tokenizer = byte_level(
        (
            *("<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>"),
            *("<global-img>", *tiles),
        ),
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        model_input_names=INPUT_NAMES,
    )
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(
            size={"longest_edge": 56}, max_image_size={"longest_edge": 28}
        ),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template="<|im_start|>"
        + _template(
            open="{{ message.role | capitalize }}: ",
            image="<image>",
            video="",
            close="<end_of_utterance>\n",
            start="Assistant:",
        ),
    )
    config = Idefics3Config(image_token_id=tokenizer.convert_tokens_to_ids("<image>"))
    attack = (
        *("<image>", "<global-img>", "<row_1_col_1>", "<fake_token_around_image>"),
        *("<|im_start|>", "<end_of_utterance>"),
    )
    # Enlarged to 56x56: four tiles and the whole, four tokens each.
    return MediaFamily(processor, config, 20, ("pixel_values", "pixel_attention_mask"), attack)


def _gemma3() -> MediaFamily:
    tokenizer = sentencepiece_bpe(
        ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_image>", "<end_of_image>", "<image_soft>"),
        plain=("<start_of_turn>", "<end_of_turn>"),
        **GEMMA_NAMES,
        extra_special_tokens={
            "image_token": "<image_soft>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size=SIZE, image_seq_length=4),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template="{{ bos_token }}"
        + _template(
            open="<start_of_turn>{{ message.role }}\n",
            image="<start_of_image>",
            video="",
            close="<end_of_turn>\n",
            start="<start_of_turn>model\n",
        ),
    )
    config = Gemma3Config(image_token_index=tokenizer.convert_tokens_to_ids("<image_soft>"))
    attack = ("<start_of_image>", "<image_soft>", "<end_of_image>", "<start_of_turn>", "<bos>")
    return MediaFamily(processor, config, 4, ("pixel_values", "token_type_ids"), attack)


def _paligemma() -> MediaFamily:
    tokenizer = sentencepiece_bpe(
        ("<pad>", "<eos>", "<bos>", "<unk>"),
        **GEMMA_NAMES,  # type: ignore[arg-type]
    )
    images = SiglipImageProcessorPil(size=SIZE)
    images.image_seq_length = 4
    processor = PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer)
    config = PaliGemmaConfig(image_token_index=tokenizer.convert_tokens_to_ids("<image>"))
    return MediaFamily(processor, config, 4, ("pixel_values", "token_type_ids"), ("<bos>", "<eos>"))


def _mllama() -> MediaFamily:
    """Its template reads parts from the user and a string from the system."""
    special = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    tokenizer = byte_level(
        (*special, "<|image|>", "<|python_tag|>"),
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|eot_id|>",
        adds_bos=True,
        model_input_names=INPUT_NAMES,
    )
    header = "<|start_header_id|>ROLE<|end_header_id|>\n\n"
    processor = MllamaProcessor(
        image_processor=MllamaImageProcessorPil(size=SIZE, max_image_tiles=1),
        tokenizer=tokenizer,
        chat_template="{{ bos_token }}{% if messages[0].role == 'system' %}"
        + header.replace("ROLE", "system")
        + "{{ messages[0].content | string | trim }}<|eot_id|>{% set messages = messages[1:] %}"
        + "{% endif %}"
        + _template(
            open=header.replace("ROLE", "{{ message.role }}"),
            image="<|image|>",
            video="",
            close="<|eot_id|>",
            start=header.replace("ROLE", "assistant"),
        ),
    )
    config = MllamaConfig(image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"))
    needed = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask")
    return MediaFamily(processor, config, 1, needed, (*special, "<|image|>"))


FAMILIES: dict[str, Callable[[], MediaFamily]] = {
    "qwen2_vl": _qwen2_vl,
    "llava": _llava,
    "idefics3": _idefics3,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "mllama": _mllama,
}
