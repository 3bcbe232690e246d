"""Models to ask; what they need is imported for the tests that do."""

from collections.abc import Callable
from pathlib import Path

import pytest

QUESTION = "?"  # a scripted model answers after it


@pytest.fixture(scope="session")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random vision-language model."""
    from mmspec.training.tiny.build import build_model, build_processor

    folder = tmp_path_factory.mktemp("vlm")
    build_model("nano").save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[[str], Path]:
    """Gives folders of models that say one text, whose bytes must all be different, after '?'."""

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from mmspec.training.tiny.build import EOS, NUM_SPECIALS, VOCAB, build_tokenizer

    def build(answer: str) -> Path:
        said = [NUM_SPECIALS + byte for byte in f"{QUESTION}{answer}".encode()]
        assert len(set(said)) == len(said), "each byte can be followed by one other only"
        follows = dict(zip(said, [*said[1:], EOS], strict=True))
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB,
                hidden_size=VOCAB,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                tie_word_embeddings=False,
                eos_token_id=EOS,
            )
        )
        with torch.no_grad():
            # The hidden state is the token itself, one-hot; the head is the table of followers.
            model.model.embed_tokens.weight.copy_(torch.eye(VOCAB))
            model.model.layers[0].self_attn.o_proj.weight.zero_()
            model.model.layers[0].mlp.down_proj.weight.zero_()
            model.lm_head.weight.normal_(std=0.01)
            for token, follower in follows.items():
                model.lm_head.weight[follower, token] += 1.0
        folder = tmp_path / "scripted"
        model.save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
        return folder

    return build
