"""adapter_config.json of PEFT: what an adapter's matrices are to be multiplied with, and what this
engine cannot do.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from octavo_protocol.errors import ValidationError

_T = TypeVar("_T")

CONFIG_FILE = "adapter_config.json"
_MAX_REPETITIONS = 3
_REPETITION = re.compile(r"[*+{]")
_REPEATED_GROUP = re.compile(r"\)[*+{?]")

_UNSUPPORTED: dict[str, str] = {
    "use_dora": "DoRA changes the norms of the base model's weights: merge it into the model",
    "modules_to_save": "whole modules besides the low-rank matrices: merge it into the model",
    "lora_bias": "biases: train it without lora_bias",
    "target_parameters": "parameters that are no linear layer's weight: merge it into the model",
    "trainable_token_indices": "single rows of the embedding: merge it into the model",
    "layer_replication": "a model with repeated layers: merge it into the model",
    "alora_invocation_tokens": "activation at certain tokens (aLoRA) is not supported",
    "use_qalora": "QALoRA is not supported: merge it into the model",
    "use_bdlora": "BD-LoRA is not supported: merge it into the model",
    "arrow_config": "routing between adapters (Arrow) is not supported",
    "monteclora_config": "MonteCLoRA is not supported: merge it into the model",
    "kasa_config": "KaSA changes the base model's weights: merge it into the model",
    "ensure_weight_tying": "one adapter for embedding and output head: merge it into the model",
}
# They change the base model's weights before training starts.
_UNSUPPORTED_INIT = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """lora_rank, alpha: of all modules but those that a pattern names. Patterns match the ends of
    module names; the first that fits counts.
    """

    lora_rank: int
    alpha: float
    use_rslora: bool = False
    rank_patterns: Sequence[tuple[re.Pattern[str], int]] = ()
    alpha_patterns: Sequence[tuple[re.Pattern[str], float]] = ()

    @classmethod
    def parse(cls, text: bytes) -> "PeftConfig":
        """Raises `ValidationError`, with the cause and what helps, for what cannot be served."""
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise _invalid(f"is no JSON ({error})") from error
        if not isinstance(raw, dict):
            raise _invalid("must be an object")
        _refuse_unsupported(raw)
        return cls(
            lora_rank=_rank(raw.get("r"), "r"),
            alpha=_number(raw.get("lora_alpha"), "lora_alpha"),
            use_rslora=bool(raw.get("use_rslora")),
            rank_patterns=[
                (_pattern(key), _rank(value, f"rank_pattern[{key!r}]"))
                for key, value in _mapping(raw, "rank_pattern").items()
            ],
            alpha_patterns=[
                (_pattern(key), _number(value, f"alpha_pattern[{key!r}]"))
                for key, value in _mapping(raw, "alpha_pattern").items()
            ],
        )

    def rank_of(self, module: str) -> int:
        return _first(self.rank_patterns, module, self.lora_rank)

    def scaling_of(self, module: str) -> float:
        """alpha / rank, or alpha / √rank with rank-stabilised scaling."""
        alpha = _first(self.alpha_patterns, module, self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    kind = raw.get("peft_type", "LORA")
    if kind != "LORA":
        raise _invalid(f"has peft_type {kind!r}; only LORA adapters can be served")
    for key, why in _UNSUPPORTED.items():
        if raw.get(key):
            raise _invalid(f"sets {key}, which cannot be served: {why}")
    bias = raw.get("bias", "none")
    if bias != "none":
        raise _invalid(
            f"has bias={bias!r}: biases cannot be served per request; train it with bias='none', "
            "or merge it into the model"
        )
    init = raw.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_UNSUPPORTED_INIT):
        raise _invalid(
            f"has init_lora_weights={init!r}, which goes with changed weights of the base model: "
            "save it with path_initial_model_for_weight_conversion, which makes it a plain adapter"
        )


def _first(patterns: Iterable[tuple[re.Pattern[str], _T]], module: str, default: _T) -> _T:
    return next((value for pattern, value in patterns if pattern.match(module)), default)


def _pattern(key: str) -> re.Pattern[str]:
    """Raises `ValidationError`, also for an expression that could take for ever."""
    if len(_REPETITION.findall(key)) > _MAX_REPETITIONS or _REPEATED_GROUP.search(key):
        raise _invalid(
            f"has a pattern {key!r} that repeats groups, or more than {_MAX_REPETITIONS} times: "
            "name the modules plainly"
        )
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except re.error as error:
        raise _invalid(f"has a pattern {key!r} that is no regular expression: {error}") from error


def _mapping(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise _invalid(f"has a {key} that is no object: {value!r}")
    return value


def _rank(value: Any, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _invalid(f"must give {key} as an integer from 1 on, got {value!r}")
    return value


def _number(value: Any, key: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise _invalid(f"must give {key} as a number, got {value!r}")
    return float(value)


def _invalid(what: str) -> ValidationError:
    return ValidationError(f"{CONFIG_FILE} {what}", parameter="lora_path")
