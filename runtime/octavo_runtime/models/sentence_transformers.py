"""sentence-transformers' files in a model folder: what follows the transformer, and with what.

    modules.json                       the stages, in order, and the folder of each
    1_Pooling/config.json              how rows become a vector
    2_Dense/{config.json, model.safetensors}
    3_Normalize/
    sentence_bert_config.json          max_seq_length
    config_sentence_transformers.json  prompts

Source: sentence-transformers 2 to 6, as they save and load.
"""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from octavo_protocol.errors import ConfigError
from octavo_runtime.layers.dense_head import ACTIVATIONS
from octavo_runtime.pooling import DenseHead, SequencePooling

MODULES = "modules.json"
_SUPPORTED = ("Transformer", "Pooling", "Dense", "Normalize")
_POOLINGS: dict[str, SequencePooling] = {"cls": "CLS", "mean": "MEAN", "lasttoken": "LAST"}
# Before version 6 there was a switch for each.
_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}


@dataclass(frozen=True, slots=True)
class SentenceModules:
    """pooling: None where the files leave it open. max_seq_length: in tokens."""

    pooling: SequencePooling | None
    dense: tuple[DenseHead, ...]
    normalizes: bool
    max_seq_length: int | None
    prompts: tuple[tuple[str, str], ...]


def read_sentence_modules(folder: Path) -> SentenceModules | None:
    """None for a folder that is not sentence-transformers'.

    Raises `ConfigError` that names the file, for stages that are not supported and for paths that
    lead out of the folder.
    """
    path = folder / MODULES
    if not path.is_file():
        return None
    pooling: SequencePooling | None = None
    dense: list[DenseHead] = []
    normalizes = False
    for kind, place in _stages(path):
        match kind:
            case "Transformer":
                _check_place(path, place)
            case "Pooling":
                pooling = _pooling(_file(folder, place, "config.json"))
            case "Dense":
                dense.append(_dense(_file(folder, place, "config.json")))
            case "Normalize":
                normalizes = True
    length = _read(folder / "sentence_bert_config.json").get("max_seq_length")
    prompts = _read(folder / "config_sentence_transformers.json").get("prompts") or {}
    return SentenceModules(
        pooling=pooling,
        dense=tuple(dense),
        normalizes=normalizes,
        max_seq_length=length if isinstance(length, int) and length > 0 else None,
        prompts=tuple((str(name), str(text)) for name, text in prompts.items()),
    )


def _stages(path: Path) -> list[tuple[str, str]]:
    """(class, folder) of each, in order."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        stages = [(str(each["type"]).rpartition(".")[2], str(each["path"])) for each in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is not a list of sentence-transformers modules: {error!r}"
        ) from (error)
    kinds = [kind for kind, _ in stages]
    for kind in kinds:
        if kind not in _SUPPORTED:
            _refuse(path, f"module {kind} is not supported; these are: {', '.join(_SUPPORTED)}")
    if kinds != sorted(kinds, key=_SUPPORTED.index) or kinds[:1] != ["Transformer"]:
        _refuse(path, f"modules must come in the order {', '.join(_SUPPORTED)}; it has {kinds}")
    return stages


def _check_place(path: Path, place: str) -> None:
    if place:
        _refuse(path, f"the transformer must be in the folder itself, not in {place!r}")


def _file(folder: Path, place: str, name: str) -> Path:
    parts = PurePosixPath(place).parts
    if PurePosixPath(place).is_absolute() or ".." in parts or "\\" in place:
        _refuse(folder / MODULES, f"path {place!r} leads out of the folder")
    return folder.joinpath(*parts, name)


def _pooling(path: Path) -> SequencePooling:
    raw = _read(path, is_needed=True)
    modes = raw.get("pooling_mode") or [
        mode for switch, mode in _SWITCHES.items() if raw.get(switch)
    ]
    modes = [modes] if isinstance(modes, str) else list(modes) or ["mean"]
    if len(modes) > 1 or modes[0] not in _POOLINGS:
        _refuse(
            path, f"pooling {'+'.join(modes)} is not supported; these are: {', '.join(_POOLINGS)}"
        )
    if raw.get("include_prompt") is False:
        _refuse(path, "include_prompt false is not supported: prompts are pooled with their texts")
    return _POOLINGS[modes[0]]


def _dense(path: Path) -> DenseHead:
    raw = _read(path, is_needed=True)
    activation = str(raw.get("activation_function") or "Tanh").rpartition(".")[2]
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        _refuse(path, f"activation_function {activation} is not supported; these are: {known}")
    for key, supported in (("module_input_name", "sentence_embedding"), ("use_residual", False)):
        if raw.get(key, supported) != supported:
            _refuse(path, f"{key} {raw[key]!r} is not supported, only {supported!r}")
    try:
        sizes = int(raw["in_features"]), int(raw["out_features"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} must have in_features and out_features: {error!r}") from error
    return DenseHead(path.parent, *sizes, bool(raw.get("bias", True)), activation)


def _read(path: Path, *, is_needed: bool = False) -> dict[str, Any]:
    """{} where the file is missing and not needed."""
    if not path.is_file():
        if is_needed:
            _refuse(
                path, f"it is missing, though {MODULES} names its folder: fetch the model again"
            )
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        _refuse(path, "it must hold a JSON object")
    return value


def _refuse(path: Path, why: str) -> NoReturn:
    raise ConfigError(f"{path}: {why}")
