"""What a model's files and the user's settings say about pooling, as one `PoolingConfig`."""

from typing import Literal

from octavo_protocol.errors import ConfigError
from octavo_runtime.config import EngineConfig, PoolerConfig
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.models.runner_type import RunnerChoice
from octavo_runtime.models.sentence_transformers import SentenceModules, read_sentence_modules
from octavo_runtime.pooling import DenseHead, PoolingConfig, SequencePooling, TokenPooling

_SEQUENCE: dict[str, SequencePooling] = {"CLS": "CLS", "LAST": "LAST", "MEAN": "MEAN"}
_TOKEN: dict[str, TokenPooling] = {"ALL": "ALL", "STEP": "STEP"}
_BY_PROBLEM: dict[str, Literal["softmax", "sigmoid", "identity"]] = {
    "regression": "identity",
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
}
_BY_NAME: dict[str, Literal["sigmoid", "identity"]] = {"Sigmoid": "sigmoid", "Identity": "identity"}


def read_pooling_config(
    config: EngineConfig, model_config: ModelConfig, choice: RunnerChoice
) -> PoolingConfig:
    """Of the model in `config.model`, under `config.pooler_config`.

    choice: whether it gives vectors or classes. Raises `ConfigError` for files that cannot be
    honoured, and for settings that do not fit the model.
    """
    user = config.pooler_config
    modules = read_sentence_modules(config.model)
    gives_vectors = choice.convert == "embed"
    dense = modules.dense if modules and gives_vectors else ()
    embedding_size = _checked_size(model_config.hidden_size, dense) if gives_vectors else 0
    hints = model_config.pooling
    return PoolingConfig(
        tasks=_tasks(user, model_config.architecture, gives_vectors),
        seq_pooling_type=_sequence_pooling(user, modules, choice, model_config),
        tok_pooling_type=_TOKEN.get(user.tok_pooling_type or user.pooling_type or "", "ALL"),
        use_activation=_use_activation(user, modules if gives_vectors else None),
        activation="identity" if gives_vectors else _activation(model_config),
        dense=dense,
        embedding_size=embedding_size,
        matryoshka=gives_vectors and hints.is_matryoshka,
        matryoshka_dimensions=hints.matryoshka_dimensions if gives_vectors else (),
        dimensions=_checked_dimensions(user, model_config, embedding_size),
        labels=() if gives_vectors else hints.labels,
        logit_mean=user.logit_mean,
        logit_sigma=user.logit_sigma,
        step_tag_id=user.step_tag_id,
        returned_token_ids=_checked_columns(user, () if gives_vectors else hints.labels),
        max_model_len=modules.max_seq_length if modules else None,
        prompts=modules.prompts if modules else (),
    )


def _tasks(user: PoolerConfig, architecture: str, gives_vectors: bool) -> tuple[str, ...]:
    if architecture.endswith("ForTokenClassification"):
        tasks: tuple[str, ...] = ("token_classify",)
    else:
        tasks = ("embed", "token_embed") if gives_vectors else ("classify", "token_classify")
    if user.task is None:
        return tasks
    if user.task not in tasks:
        raise ConfigError(
            f"pooler_config asks for task {user.task!r}, {architecture} has {', '.join(tasks)}: "
            "convert embed or classify changes what a model gives"
        )
    return (user.task,)


def _sequence_pooling(
    user: PoolerConfig,
    modules: SentenceModules | None,
    choice: RunnerChoice,
    model_config: ModelConfig,
) -> SequencePooling:
    """A classifier's head was trained on what config.json says, whatever its folder says of
    embeddings.
    """
    wanted = user.seq_pooling_type or user.pooling_type or ""
    if wanted in _SEQUENCE:
        return _SEQUENCE[wanted]
    if modules is not None and modules.pooling is not None and choice.convert == "embed":
        return modules.pooling
    if choice.convert == "classify" and model_config.encoder is not None:
        return model_config.encoder.classifier_pooling
    return "CLS" if choice.is_encoder else "LAST"


def _use_activation(user: PoolerConfig, modules: SentenceModules | None) -> bool:
    if user.use_activation is not None:
        return user.use_activation
    return modules.normalizes if modules is not None else True


def _activation(model_config: ModelConfig) -> Literal["softmax", "sigmoid", "identity"]:
    """What a classifier was trained for; one class alone is a score."""
    hints = model_config.pooling
    if hints.problem_type is not None:
        if hints.problem_type not in _BY_PROBLEM:
            known = ", ".join(_BY_PROBLEM)
            raise ConfigError(f"problem_type {hints.problem_type!r} is none of {known}")
        return _BY_PROBLEM[hints.problem_type]
    if hints.activation is not None:
        name = hints.activation.rpartition(".")[2]
        if name not in _BY_NAME:
            raise ConfigError(
                f"the cross-encoder's activation {hints.activation!r} is not supported; these are: "
                f"{', '.join(_BY_NAME)}"
            )
        return _BY_NAME[name]
    return "softmax" if len(hints.labels) > 1 else "sigmoid"


def _checked_size(hidden_size: int, dense: tuple[DenseHead, ...]) -> int:
    """Of vectors, after all heads."""
    size = hidden_size
    for head in dense:
        if head.in_features != size:
            raise ConfigError(f"{head.folder} takes {head.in_features} features, it gets {size}")
        size = head.out_features
    return size


def _checked_dimensions(
    user: PoolerConfig, model_config: ModelConfig, embedding_size: int
) -> int | None:
    wanted, hints = user.dimensions, model_config.pooling
    if wanted is None:
        return None
    allowed = hints.matryoshka_dimensions
    if not hints.is_matryoshka or not 1 <= wanted <= embedding_size:
        raise ConfigError(
            f"pooler_config asks for {wanted} dimensions; this model gives {embedding_size}"
            + (
                ""
                if hints.is_matryoshka
                else ' and is no Matryoshka model: hf_overrides {"is_m'
                'atryoshka": true} says that it is'
            )
        )
    if allowed and wanted not in allowed:
        known = ", ".join(map(str, allowed))
        raise ConfigError(f"pooler_config asks for {wanted} dimensions; the model has {known}")
    return wanted


def _checked_columns(user: PoolerConfig, labels: tuple[str, ...]) -> tuple[int, ...] | None:
    columns = user.returned_token_ids
    if columns is None:
        return None
    if any(not 0 <= column < len(labels) for column in columns):
        raise ConfigError(
            f"pooler_config returns columns {columns}, the model gives {len(labels)} logits a token"
        )
    return tuple(columns)
