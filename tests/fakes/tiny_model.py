"""A model folder without weights: a small byte-level tokenizer, a chat template, configurations."""

import functools
import json
from pathlib import Path
from typing import Any

import tokenizers
import tokenizers.decoders
import tokenizers.models
import tokenizers.pre_tokenizers
import tokenizers.trainers

from octavo_protocol.tokenizer import Tokenizer, TokenizerBundle

VOCAB_SIZE = 352
END, START = "<|end|>", "<|start|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
_TEXTS = [
    "the quick brown fox jumps over the lazy dog and the dog sleeps",
    "user assistant system hello world this is a test of the tokenizer",
    "今天天气很好 今天天气 日本の首都 日本",
    "🙂🙂🙂🙃🙃 émigré émigré naïve naïve",
]


@functools.cache
def tiny_bundle() -> TokenizerBundle:
    """Every byte is a token; some tokens are parts of characters, some are words."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=True
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=1,
        show_progress=False,
        special_tokens=[END, START],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return TokenizerBundle(tokenizer.to_str(), CHAT_TEMPLATE, {"eos_token": END})


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    return Tokenizer(tiny_bundle())


def write_tiny_model(folder: Path, *, max_position_embeddings: int = 512) -> Path:
    """Writes all that a replica reads besides weights."""
    bundle = tiny_bundle()
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": max_position_embeddings,
        "eos_token_id": tiny_tokenizer().eos_token_id,
    }
    files: dict[str, Any] = {
        "config.json": config,
        "generation_config.json": {"temperature": 0.7, "top_k": 50},
        "tokenizer_config.json": {"chat_template": CHAT_TEMPLATE, "eos_token": END},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "tokenizer.json").write_text(bundle.tokenizer_json)
    return folder
