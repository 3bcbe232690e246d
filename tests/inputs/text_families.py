"""Small real tokenizers in the styles of several model families, built without a network."""

from dataclasses import dataclass
from functools import cache

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers import processors as post
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

CORPUS = [
    "The invoice of March lists three items and a total of 42.50 euros.",
    "Was steht auf dem Bild? Ein roter Kreis und zwei blaue Quadrate.",
    "def total(prices: list[float]) -> float: return sum(prices)",
    "user assistant system image video start end of turn header <b>bold</b> [1, 2] {a: b}",
    "The quick brown fox jumps over the lazy dog. 0123456789 !?.,;:-_()/|<>#@$%&*+=~^`'\"\\",
]
TURNS = (
    "{% for message in messages %}START{{ message.role }}MIDDLE{{ message.content }}END"
    "{% endfor %}{% if add_generation_prompt %}STARTassistantMIDDLE{% endif %}"
)


@dataclass(frozen=True)
class TextFamily:
    """What the tests need to know of one family."""

    name: str
    control: tuple[str, ...]  # must never be parsed from user text
    content: tuple[str, ...] = ()  # added tokens that are ordinary content
    template: str = ""


FAMILIES = {
    family.name: family
    for family in (
        TextFamily(
            "qwen",
            control=("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|image_pad|>", "<|fim|>"),
            content=("<tool_call>", "<think>"),
            template=TURNS.replace("START", "<|im_start|>")
            .replace("MIDDLE", "\n")
            .replace("END", "<|im_end|>\n"),
        ),
        TextFamily(
            "llama3",
            control=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            template="{{ bos_token }}"
            + TURNS.replace("START", "<|start_header_id|>")
            .replace("MIDDLE", "<|end_header_id|>\n\n")
            .replace("END", "<|eot_id|>"),
        ),
        TextFamily(
            "gemma",
            control=("<bos>", "<eos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
            content=("<table>",),
            template="{{ bos_token }}"
            + TURNS.replace("START", "<start_of_turn>")
            .replace("MIDDLE", "\n")
            .replace("END", "<end_of_turn>\n"),
        ),
        TextFamily("gpt2", control=("<|endoftext|>",)),
        TextFamily("unigram", control=("<s>", "</s>", "<unk>", "<mask>")),
        TextFamily("wordpiece", control=("[CLS]", "[SEP]", "[turn]")),
    )
}


@cache
def build_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a family; shared, since building takes a moment."""
    return _BUILDERS[name]()


def byte_level(
    special: tuple[str, ...], *, plain: tuple[str, ...] = (), **names: object
) -> PreTrainedTokenizerBase:
    """Byte-level BPE (GPT-2, Qwen, Llama 3, SmolLM)."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    core.add_special_tokens([AddedToken(one, normalized=False) for one in special])
    core.add_tokens([AddedToken(one, normalized=False) for one in plain])
    bos = names.get("bos_token")
    if names.pop("adds_bos", False):
        pair = (str(bos), core.token_to_id(str(bos)))
        core.post_processor = post.TemplateProcessing(single=f"{bos} $A", special_tokens=[pair])
    return _wrap(core, **names)


def sentencepiece_bpe(
    special: tuple[str, ...], *, plain: tuple[str, ...] = (), **names: object
) -> PreTrainedTokenizerBase:
    """BPE with byte fallback and spaces as ▁ (Llama 2, Gemma, PaliGemma)."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [one for one in trained.get_vocab() if one not in pieces]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    core = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    core.add_special_tokens([AddedToken(one, normalized=False) for one in special])
    core.add_tokens([AddedToken(one, normalized=False) for one in plain])
    bos = str(names["bos_token"])
    core.post_processor = post.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))]
    )
    return _wrap(core, **names)


def _unigram() -> PreTrainedTokenizerBase:
    """Unigram without byte fallback (T5, XLM-R): odd characters become the unknown token."""
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    special = ["<s>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    core.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=True)])
    return _wrap(core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", mask_token="<mask>")


def _wordpiece() -> PreTrainedTokenizerBase:
    """WordPiece whose normaliser lowers case and drops invisible characters, and a special token
    that is matched after it (BERT style)."""
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    core.add_special_tokens([AddedToken("[turn]", normalized=True)])
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return _wrap(
        core, unk_token="[UNK]", bos_token="[CLS]", eos_token="[SEP]", model_input_names=names
    )


def _wrap(core: Tokenizer, **names: object) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(
        tokenizer_object=core, clean_up_tokenization_spaces=False, **names
    )


def _templated(name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    tokenizer.chat_template = FAMILIES[name].template
    return tokenizer


_QWEN_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
_BUILDERS = {
    "qwen": lambda: _templated(
        "qwen",
        byte_level(
            _QWEN_SPECIAL,
            plain=("<tool_call>", "</tool_call>", "<think>", "</think>", "<|fim|>"),
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
        ),
    ),
    "llama3": lambda: _templated(
        "llama3",
        byte_level(
            FAMILIES["llama3"].control,
            bos_token="<|begin_of_text|>",
            eos_token="<|eot_id|>",
            adds_bos=True,
        ),
    ),
    "gemma": lambda: _templated(
        "gemma",
        sentencepiece_bpe(
            ("<pad>", "<eos>", "<bos>", "<unk>", "<image_soft_token>"),
            plain=("<start_of_turn>", "<end_of_turn>", "<table>", "\n\n"),
            bos_token="<bos>",
            eos_token="<eos>",
            unk_token="<unk>",
            pad_token="<pad>",
        ),
    ),
    "gpt2": lambda: byte_level(
        ("<|endoftext|>",),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    ),
    "unigram": _unigram,
    "wordpiece": _wordpiece,
}
