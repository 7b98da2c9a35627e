"""What a model's files and the user's settings say about pooling, as one `PoolingConfig`."""

import json
from pathlib import Path
from typing import Any, Literal

from octavo_runtime.config import PoolerConfig
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.pooling import PoolingConfig


def read_pooling_config(
    folder: Path,
    model_config: ModelConfig,
    convert: Literal["embed", "classify"],
    user: PoolerConfig,
    *,
    is_encoder: bool,
) -> PoolingConfig:
    """Raises `ConfigError` for files that cannot be honoured.

    convert: what the model gives. is_encoder: its tokens attend in both directions.
    """
    raw: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
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
