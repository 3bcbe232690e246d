"""Draft models and tokenizers for tests: made of the target's own weights, so that what they should
accept is known, or drawn anew."""

import copy
import json
from functools import cache
from typing import Any

import torch
from families import FAMILIES
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor
from transformers import (
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

_TEXTS = (
    "the quick brown fox jumps over the lazy dog and then the other one, too",
    "hello there, how are you? I'm fine; and you? 12 + 30 = 42, isn't it?",
    "  def f(x):\n    return x + 1\n\n\nnaïve café, 猫 and 😀 und Élan über alles",
)


def fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@cache
def byte_level(merges: int = 60) -> PreTrainedTokenizerFast:
    """As GPT-2's: bytes, and merges that never cross a word's border."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=259 + merges,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return fast(tokenizer)


@cache
def metaspace(merges: int = 60) -> PreTrainedTokenizerFast:
    """As Llama 2's: a mark for each space, one before the text too; bytes where it has none. What
    is encoded as a text of its own begins with <s>."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    specials = ["<unk>", "<pad>", "<s>", "</s>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=300 + merges, special_tokens=[*specials, *fallback], show_progress=False
    )
    trained.train_from_iterator([f" {text}" for text in _TEXTS], trainer)
    spec = json.loads(trained.to_str())
    merged = [tuple(pair) for pair in spec["model"]["merges"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=spec["model"]["vocab"], merges=merged, unk_token="<unk>", byte_fallback=True
        )
    )
    tokenizer.add_special_tokens(specials)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    begins = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begins)]
    )
    return fast(tokenizer)


@cache
def letters(size: int = 112) -> PreTrainedTokenizerFast:
    """One letter an id, as many as the test families have: a text for models without words."""
    alphabet = ["\n", *map(chr, range(0x20, 0x7F)), *"Éü", *map(chr, range(0x100, 0x200))]
    texts = ["<pad>", "<s>", "</s>", *alphabet][:size]
    vocab = {text: token for token, text in enumerate(texts)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer.decoder = decoders.Fuse()
    return fast(tokenizer)


def shuffled(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The same text-only model and tokenizer under other ids: it says the same in other tokens."""
    order = torch.randperm(len(tokenizer), generator=torch.Generator().manual_seed(3))
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    for added in spec["added_tokens"]:
        added["id"] = int(order[added["id"]])
    spec["model"]["vocab"] = {
        text: int(order[token]) for text, token in spec["model"]["vocab"].items()
    }
    other = copy.deepcopy(model)
    heads = {other.get_input_embeddings(), other.get_output_embeddings()}
    weights = {id(head.weight): head.weight for head in heads}
    for weight in weights.values():  # tied ones once
        weight.data[order] = weight.data.clone()
    return other, fast(Tokenizer.from_str(json.dumps(spec)))


def text_only(model: PreTrainedModel) -> LlamaForCausalLM:
    """The language model of a LLaVA-like model, with the same weights and without eyes."""
    text: Any = LlamaForCausalLM._from_config(model.config.text_config, dtype=model.dtype)
    text.model.load_state_dict(model.model.language_model.state_dict())
    text.lm_head.load_state_dict(model.lm_head.state_dict())
    return text.eval()


def padded(model: PreTrainedModel, size: int) -> PreTrainedModel:
    """The same model with a vocabulary of `size` ids, the new ones loud: none may be proposed."""
    other = copy.deepcopy(model)
    old = other.get_input_embeddings().weight.shape[0]
    other.resize_token_embeddings(size, mean_resizing=False)
    if size > old:
        head: Tensor = other.get_output_embeddings().weight.data
        head[old:] = 5.0 * torch.randn(size - old, head.shape[1], dtype=head.dtype)
    return other


@cache
def stranger(size: int = 112) -> PreTrainedModel:
    """A text-only model that knows nothing of the target, in float64; `size` ids."""
    model = FAMILIES["qwen3"].build(torch.float64)
    return model if size == 112 else padded(model, size)
