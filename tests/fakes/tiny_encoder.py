"""A random BERT with a tokenizer: its tokens are the words w0, w1, … between [CLS] and [SEP]."""

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, processors

from tests.unit.models.encoder_checkpoints import VOCAB, write_checkpoint

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [f"w{i}" for i in range(VOCAB - len(_SPECIAL))]


def write_tiny_encoder(folder: Path, architecture: str = "BertModel", **config: Any) -> Path:
    """Writes weights, configuration and tokenizer; config: over that of the checkpoint."""
    write_checkpoint(folder, architecture, **config)
    vocabulary = {name: index for index, name in enumerate([*_SPECIAL, *WORDS])}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def token_ids(text: str) -> list[int]:
    """As the tokenizer gives them."""
    return [2, *(WORDS.index(word) + len(_SPECIAL) for word in text.split()), 3]
