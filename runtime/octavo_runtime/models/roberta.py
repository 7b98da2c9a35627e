"""RoBERTa and XLM-RoBERTa: BERT with other positions and another classification head.

Module and tensor names are Hugging Face's, so that weights map by name.
Source: Liu et al. 2019, "RoBERTa"; Conneau et al. 2020, "XLM-R".
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from octavo_runtime.layers.encoder_batch import EncoderBatch
from octavo_runtime.layers.linear import Linear
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.models.bert import BertModel


class RobertaClassificationHead(nn.Module):
    def __init__(self, config: ModelConfig, dtype: torch.dtype, num_labels: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.dense = Linear("dense", size, size, bias=True, dtype=dtype)
        self.out_proj = Linear("out_proj", size, num_labels, bias=True, dtype=dtype)

    def forward(self, first: Tensor) -> Tensor:
        return self.out_proj(torch.tanh(self.dense(first)))  # type: ignore[no-any-return]


class RobertaForPooling(nn.Module):
    """`RobertaModel` and, with num_labels, `RobertaForSequenceClassification`; XLM-R's alike."""

    is_encoder: ClassVar[bool] = True
    base_model_prefix: ClassVar[str] = "roberta"
    classifies_tokens: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, dtype: torch.dtype, num_labels: int) -> None:
        super().__init__()
        self.roberta = BertModel(config, dtype, has_pooler=False)
        self.classifier: nn.Module | None = None
        if num_labels and self.classifies_tokens:
            self.classifier = Linear(
                "classifier", config.hidden_size, num_labels, bias=True, dtype=dtype
            )
        elif num_labels:
            self.classifier = RobertaClassificationHead(config, dtype, num_labels)

    def forward(self, batch: EncoderBatch) -> Tensor:
        return self.roberta(batch)  # type: ignore[no-any-return]

    def head(self, pooled: Tensor) -> Tensor:
        """pooled: [n, hidden_size] → logits [n, num_labels]."""
        assert self.classifier is not None, "only classifiers have a head"
        return self.classifier(pooled)  # type: ignore[no-any-return]


class RobertaForTokenClassification(RobertaForPooling):
    classifies_tokens: ClassVar[bool] = True
