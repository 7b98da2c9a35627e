"""Tiny random checkpoints of encoders, as transformers writes them, and batches for them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from octavo_runtime.layers.encoder_batch import EncoderBatch
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.models.loader import load_weights
from octavo_runtime.models.registry import pooling_model_class

VOCAB = 120
_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "initializer_range": 0.2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def family_of(architecture: str) -> str:
    """Bert, DistilBert, ModernBert, Roberta or XLMRoberta."""
    for suffix in ("Model", "ForSequenceClassification", "ForTokenClassification"):
        architecture = architecture.removesuffix(suffix)
    return architecture


def write_checkpoint(folder: Path, architecture: str, **config: Any) -> Any:
    """Saves a random model; returns it, in eval mode."""
    family = family_of(architecture)
    settings: dict[str, Any] = _SHAPE | {"max_position_embeddings": 64}
    if family == "DistilBert":
        settings["hidden_dim"] = settings["intermediate_size"]
    elif family == "ModernBert":
        del settings["hidden_dropout_prob"], settings["attention_probs_dropout_prob"]
        settings |= {"num_hidden_layers": 4, "local_attention": 16, "pad_token_id": 0}
    elif family != "Bert":
        settings |= {"max_position_embeddings": 66, "pad_token_id": 1, "type_vocab_size": 1}
    torch.manual_seed(0)
    made = getattr(transformers, f"{family}Config")(**(settings | config))
    model = getattr(transformers, architecture)(made).eval()
    # transformers starts biases at zero and norms at one, which would hide what is left out.
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            torch.nn.init.normal_(weight, 1.0 if name.endswith("norm.weight") else 0.0, 0.2)
    model.save_pretrained(folder)
    return model


def load_encoder(folder: Path, num_labels: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    config = ModelConfig.from_folder(folder)
    model = pooling_model_class(config.architecture)(config, dtype, num_labels)
    load_weights(model, folder)
    return model


def encoder_batch(prompts: list[list[int]], types: list[list[int]] | None = None) -> EncoderBatch:
    starts = np.cumsum([0, *map(len, prompts)]).astype(np.int32)
    return EncoderBatch(
        token_ids=torch.tensor([token for prompt in prompts for token in prompt]),
        positions=torch.cat([torch.arange(len(prompt)) for prompt in prompts]),
        token_type_ids=None if types is None else torch.tensor([t for row in types for t in row]),
        query_start_loc=torch.from_numpy(starts),
        max_seq_len=max(map(len, prompts)),
    )
