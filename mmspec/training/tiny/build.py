"""The bundled model's shapes, tokenizer, processor and first weights.

All of it is plain transformers: a byte-level tokenizer without merges, LlavaProcessor, and
LlavaForConditionalGeneration over a CLIP tower and a Llama text model.
"""

import math
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from mmspec.training.tiny.page import GRID, PATCH, SIDE

PAD, BOS, EOS, IMAGE, USER, ASSISTANT, SYSTEM, RESERVED = range(8)
SPECIALS = ("<pad>", "<s>", "</s>", "<image>", "<|user|>", "<|assistant|>", "<|system|>", "<|8|>")
NUM_SPECIALS = len(SPECIALS)  # byte b is token NUM_SPECIALS + b
NUM_IMAGE_TOKENS = GRID * GRID
VOCAB = NUM_SPECIALS + 256
MAX_POSITIONS = 32768

CHAT_TEMPLATE = (
    "<s>"
    "{%- for message in messages -%}"
    "<|{{ message['role'] }}|>"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}<image>{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}</s>{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


@dataclass(frozen=True)
class Shape:
    """Sizes of the tower and the text model."""

    vision_hidden: int
    vision_layers: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    head_dim: int = 64


SIZES = {
    "nano": Shape(48, 2, 144, 2, 6, 2, 112),  # two layers: half of tiny's time for a token
    "tiny": Shape(128, 3, 192, 4, 4, 2, 384),
    "25m": Shape(256, 6, 512, 8, 8, 4, 1408),
    "100m": Shape(512, 8, 768, 14, 12, 4, 2048),
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes in, bytes out: any UTF-8 text has a tokenization and nothing has to be trained."""
    # The byte-level alphabet maps each byte to one printable character; its order is by byte.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = iter(range(256, 512))
    alphabet = [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(256)]
    vocab = {token: index for index, token in enumerate(SPECIALS)}
    vocab |= {character: NUM_SPECIALS + byte for byte, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(SPECIALS[IMAGE:]),
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def build_processor() -> LlavaProcessor:
    """Chat template, tokenizer and image processor in one, as from_pretrained gives them back."""
    image_processor = CLIPImageProcessor(
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the tower's CLS, which "default" drops
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
    )


def build_model(size: str, seed: int = 0) -> LlavaForConditionalGeneration:
    """A model of one of SIZES with warm-started attention and otherwise random weights."""
    shape = SIZES[size]
    text = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        attention_bias=True,
        tie_word_embeddings=True,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 1e7},
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_hidden,
        intermediate_size=3 * shape.vision_hidden,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=NUM_IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, do_sample=False
    )
    with torch.no_grad():
        _warm_start_text(model, shape)
        _warm_start_tower(model, shape)
    return model


def _warm_start_text(model: LlavaForConditionalGeneration, shape: Shape) -> None:
    """Lets the first two layers look fixed numbers of tokens back, by their biases alone.

    A key bias k on the fastest rotary pairs and a query bias equal to k turned by -offset make
    the attention logit largest where the distance is the offset. Layer 0 looks 1 to 4 back and
    layer 1 looks 4, 8 and 12 back, so that together a position knows its last 16 tokens: the key
    by which later layers find the place to copy from. A model of two layers has only layer 0 for
    this, one head for each token.
    """
    scale, pairs, half = 8.0, 6, shape.head_dim // 2
    frequencies = 1e7 ** (-torch.arange(half) / half)[:pairs]
    groups = shape.heads // shape.kv_heads
    looks: tuple[tuple[int, ...], ...] = ((1, 2, 3, 4), (4, 8, 12))
    if shape.layers == 2:
        looks = (tuple(range(1, shape.heads + 1)),)
    for layer, offsets in enumerate(looks):
        attention = model.model.language_model.layers[layer].self_attn
        query = attention.q_proj.bias.view(shape.heads, 2, half)
        key = attention.k_proj.bias.view(shape.kv_heads, 2, half)
        query.zero_()
        key.zero_()
        key[: -(-len(offsets) // groups), 0, :pairs] = scale
        for head, offset in enumerate(offsets):
            query[head, 0, :pairs] = scale * torch.cos(frequencies * offset)
            query[head, 1, :pairs] = -scale * torch.sin(frequencies * offset)


def _warm_start_tower(model: LlavaForConditionalGeneration, shape: Shape) -> None:
    """Gives the tower Fourier position features and heads that look at neighbouring patches.

    A patch that knows the characters left of it can be found by the text that was just written.
    """
    tower = model.model.vision_tower
    embeddings = tower.embeddings
    head_dim = shape.vision_hidden // 4
    count = head_dim // 4  # frequencies an axis; a head holds cos and sin of both axes
    frequencies = math.pi / 2 * (2 / GRID) ** (torch.arange(count) / (count - 1))
    place = torch.arange(GRID).float()[:, None] * frequencies  # (GRID, count)
    wave = torch.cat([place.cos(), place.sin()], dim=1)  # (GRID, 2 * count)
    rows = wave[:, None].expand(GRID, GRID, -1).reshape(GRID * GRID, -1)
    columns = wave[None].expand(GRID, GRID, -1).reshape(GRID * GRID, -1)
    nn.init.normal_(embeddings.position_embedding.weight, std=0.02)
    nn.init.normal_(embeddings.patch_embedding.weight, std=0.05)
    position = embeddings.position_embedding.weight
    position[1:, -head_dim:] = torch.cat([rows, columns], dim=1)
    looks = {1: ((0, 1), (0, 2), (0, 3)), 2: ((0, -1), (1, 0), (-1, 0))}
    for layer, offsets in looks.items():
        if layer >= shape.vision_layers:
            continue
        attention = tower.encoder.layers[layer].self_attn
        query = attention.q_proj.weight.view(4, head_dim, shape.vision_hidden)
        key = attention.k_proj.weight.view(4, head_dim, shape.vision_hidden)
        for head, (up, left) in enumerate(offsets):
            query[head], key[head] = 0, 0
            key[head][:, -head_dim:] = 3 * torch.eye(head_dim)
            query[head][:, -head_dim:] = 3 * _turn(frequencies, up, left)


def _turn(frequencies: Tensor, up: int, left: int) -> Tensor:
    """The matrix that moves Fourier position features `up` rows and `left` columns back."""
    count = len(frequencies)
    turn = torch.zeros(4 * count, 4 * count)
    index = torch.arange(count)
    for start, offset in ((0, up), (2 * count, left)):
        cos, sin = (frequencies * offset).cos(), (frequencies * offset).sin()
        turn[start + index, start + index] = cos
        turn[start + index, start + count + index] = sin
        turn[start + count + index, start + index] = -sin
        turn[start + count + index, start + count + index] = cos
    return turn
