"""What a model's files and the user's settings say about pooling, as one `PoolingConfig`."""

import json
from typing import Any

from octavo_runtime.config import EngineConfig
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.models.runner_type import RunnerChoice
from octavo_runtime.pooling import PoolingConfig


def read_pooling_config(
    config: EngineConfig, model_config: ModelConfig, choice: RunnerChoice
) -> PoolingConfig:
    """Of the model in `config.model`, under `config.pooler_config`.

    choice: whether it gives vectors or classes. Raises `ConfigError` for files that cannot be
    honoured.
    """
    user, is_encoder, convert = config.pooler_config, choice.is_encoder, choice.convert
    text = (config.model / "config.json").read_text(encoding="utf-8")
    raw: dict[str, Any] = json.loads(text) | config.hf_overrides
    labels = raw.get("id2label") or {str(i): f"LABEL_{i}" for i in range(raw.get("num_labels", 2))}
    is_classifier = convert == "classify"
    kind: Any = user.pooling_type or user.seq_pooling_type or ("CLS" if is_encoder else "LAST")
    return PoolingConfig(
        tasks=(convert, f"token_{convert}"),
        seq_pooling_type=kind,
        use_activation=user.use_activation is not False,
        activation="softmax" if is_classifier else "identity",
        embedding_size=0 if is_classifier else model_config.hidden_size,
        labels=tuple(labels.values()) if is_classifier else (),
    )
