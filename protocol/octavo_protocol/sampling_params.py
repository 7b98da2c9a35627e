"""`SamplingParams`: how one request is sampled. Names, defaults and ranges are vLLM's."""

import copy
import logging
import math
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import msgspec

from octavo_protocol.errors import ValidationError
from octavo_protocol.limits import limit
from octavo_protocol.old_sampling_params import SamplingParamsMeta
from octavo_protocol.structured_outputs import (
    MAX_JSON_DEPTH,
    StructuredOutputsParams,
    is_deeper,
)

GREEDY_EPSILON = 1e-5
MIN_TEMPERATURE = 0.01
MAX_N = limit("VLLM_MAX_N_SEQUENCES", 16384)
MAX_LOGPROB_TOKEN_IDS = 128
MAX_BIAS = 100.0
MAX_EXTRA_VALUES = 10_000  # they are copied into every sample
MAX_INT = 2**63 - 1  # what crosses to the engine process is a 64-bit integer


_NEVER_NONE = ("stop", "stop_token_ids", "bad_words")
_LISTS = (*_NEVER_NONE, "allowed_token_ids", "logprob_token_ids")
_FLAGS = (
    *("ignore_eos", "flat_logprobs", "detokenize", "skip_special_tokens"),
    *("spaces_between_special_tokens", "include_stop_str_in_output", "skip_clone"),
)

logger = logging.getLogger(__name__)


class RequestOutputKind(IntEnum):
    """What each streamed `RequestOutput` carries."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


class SamplingType(IntEnum):
    """How the next token is chosen."""

    GREEDY = 0
    RANDOM = 1
    RANDOM_SEED = 2


class RepetitionDetectionParams(msgspec.Struct, omit_defaults=True):
    """Ends a sequence (finish_reason "repetition") whose last tokens repeat a pattern.

    A pattern of min_pattern_size to max_pattern_size tokens that stands min_count times in a row
    at the end counts. max_pattern_size 0 turns detection off.
    """

    max_pattern_size: int = 0
    min_pattern_size: int = 0
    min_count: int = 0

    def __post_init__(self) -> None:
        _check_int("repetition_detection.max_pattern_size", self.max_pattern_size, 0)
        _check_int(
            "repetition_detection.min_pattern_size", self.min_pattern_size, 0, self.max_pattern_size
        )
        if self.max_pattern_size > 0:
            _check_int("repetition_detection.min_count", self.min_count, 2)


class SamplingParams(msgspec.Struct, omit_defaults=True, metaclass=SamplingParamsMeta):
    """Parameters of one generation request, validated when constructed.

    A temperature below 1e-5 means greedy decoding and resets top_p, top_k and min_p. `seed` makes
    the request's draws independent of whatever runs beside it: the noise of token i is a function
    of (seed, i) alone, and sample j of `n` uses seed + j.

    Raises `ValidationError` (a `ValueError`) that names the parameter and its range.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    watermarking: bool | None = None
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_logprob_token_ids: list[list[int]] | None = None
    prompt_logprob_start: int | None = None
    logprob_token_ids: list[int] | None = None
    flat_logprobs: bool = False
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    stream_interval: int | None = None
    skip_clone: bool = False
    structured_outputs: StructuredOutputsParams | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    extra_args: dict[str, Any] | None = None
    bad_words: list[str] | None = None
    skip_reading_prefix_cache: bool | None = None
    thinking_token_budget: int | None = None
    repetition_detection: RepetitionDetectionParams | None = None
    routed_experts_prompt_start: int = 0
    trace_decode_token_ids: list[int] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            self.stop = [self.stop]
        for name in _LISTS:
            value = getattr(self, name)
            if value is None and name in _NEVER_NONE:
                setattr(self, name, [])
            elif isinstance(value, tuple | set | frozenset | range):
                setattr(self, name, list(value))
        if self.seed == -1:
            self.seed = None
        if self.logprobs is True:
            self.logprobs = 1
        if self.prompt_logprobs is True:
            self.prompt_logprobs = 1
        if self.thinking_token_budget == -1 and isinstance(self.thinking_token_budget, int):
            self.thinking_token_budget = None
        self._validate()
        if self.skip_reading_prefix_cache is None:
            self.skip_reading_prefix_cache = (
                self.prompt_logprobs is not None or self.prompt_logprob_token_ids is not None
            )
        if self.temperature < GREEDY_EPSILON:
            self.top_p, self.top_k, self.min_p = 1.0, 0, 0.0
        elif self.temperature < MIN_TEMPERATURE:
            logger.warning(
                "temperature %g is raised to %g: smaller ones overflow",
                self.temperature,
                MIN_TEMPERATURE,
            )
            self.temperature = MIN_TEMPERATURE

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_EPSILON

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        assert isinstance(self.stop, list)
        return self.stop

    @property
    def sampling_type(self) -> SamplingType:
        if self.is_greedy:
            return SamplingType.GREEDY
        return SamplingType.RANDOM if self.seed is None else SamplingType.RANDOM_SEED

    def clone(self) -> "SamplingParams":
        """A copy that shares nothing mutable with this one; this one itself with `skip_clone`."""
        return self if self.skip_clone else copy.deepcopy(self)

    @classmethod
    def from_optional(
        cls, *, logit_bias: Mapping[Any, float] | None = None, **values: Any
    ) -> "SamplingParams":
        """As the constructor, where None means the default. Biases are cut to [-100, 100] and
        their keys may be strings (JSON has no others). Raises `ValidationError` for a key that is
        no integer.
        """
        given = {
            name: value
            for name, value in values.items()
            if value is not None or name in ("max_tokens", "seed")
        }
        return cls(logit_bias=None if logit_bias is None else clamped(logit_bias), **given)

    def _validate(self) -> None:
        _check_int("n", self.n, 1, MAX_N)
        _check_float("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_float("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_float("repetition_penalty", self.repetition_penalty, 0.0, math.inf, above=True)
        _check_float("temperature", self.temperature, 0.0, 2.0)
        _check_float("top_p", self.top_p, 0.0, 1.0, above=True)
        _check_int("top_k", self.top_k, -1)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            _check_int("seed", self.seed, -MAX_INT - 1, MAX_INT)
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 1)
        _check_int("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValidationError(
                f"min_tokens ({self.min_tokens}) must be at most max_tokens ({self.max_tokens})",
                parameter="min_tokens",
            )
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), -1)
        self._validate_token_choices()
        self._validate_rare()
        self._validate_modes()
        if not isinstance(self.stop, list) or not all(
            isinstance(text, str) and text for text in self.stop
        ):
            raise ValidationError(
                "stop must be a non-empty string or a list of non-empty strings", parameter="stop"
            )
        if self.stop and not self.detokenize:
            raise ValidationError(
                "stop strings are matched on text: set detokenize=True or use stop_token_ids",
                parameter="stop",
            )
        if not isinstance(self.stop_token_ids, list):
            raise ValidationError(
                "stop_token_ids must be a list of integers", parameter="stop_token_ids"
            )
        for token_id in self.stop_token_ids:
            _check_int("stop_token_ids", token_id, 0)
        if self.n > 1 and self.is_greedy:
            raise ValidationError(
                f"n must be 1 with temperature 0 (got n={self.n}): all samples would be equal",
                parameter="n",
            )

    def _validate_token_choices(self) -> None:
        if self.logprob_token_ids is not None:
            _check_ids("logprob_token_ids", self.logprob_token_ids)
            if len(self.logprob_token_ids) > MAX_LOGPROB_TOKEN_IDS:
                raise ValidationError(
                    f"logprob_token_ids takes at most {MAX_LOGPROB_TOKEN_IDS} ids, got "
                    f"{len(self.logprob_token_ids)}",
                    parameter="logprob_token_ids",
                )
            if self.logprobs is not None and self.logprobs != len(self.logprob_token_ids):
                raise ValidationError(
                    f"logprobs ({self.logprobs}) must be the number of logprob_token_ids "
                    f"({len(self.logprob_token_ids)}), or be left out",
                    parameter="logprobs",
                )
        if self.allowed_token_ids is not None:
            _check_ids("allowed_token_ids", self.allowed_token_ids)
            if not self.allowed_token_ids:
                raise ValidationError(
                    "allowed_token_ids must not be empty: no token could be chosen",
                    parameter="allowed_token_ids",
                )
        if self.logit_bias is not None:
            if not isinstance(self.logit_bias, dict):
                raise ValidationError(
                    "logit_bias must map token ids to numbers", parameter="logit_bias"
                )
            for token_id, bias in self.logit_bias.items():
                _check_int("logit_bias", token_id, 0)
                _check_float("logit_bias", bias, -math.inf, math.inf)
        if not isinstance(self.bad_words, list) or not all(
            isinstance(word, str) and word for word in self.bad_words
        ):
            raise ValidationError(
                "bad_words must be a list of non-empty strings", parameter="bad_words"
            )

    def _validate_modes(self) -> None:
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValidationError(
                    f"{name} must be True or False, got {getattr(self, name)!r}", parameter=name
                )
        if not isinstance(self.skip_reading_prefix_cache, bool | None):
            raise ValidationError(
                "skip_reading_prefix_cache must be True, False or None, got "
                f"{self.skip_reading_prefix_cache!r}",
                parameter="skip_reading_prefix_cache",
            )
        try:
            self.output_kind = RequestOutputKind(self.output_kind)
        except ValueError:
            raise ValidationError(
                f"output_kind must be a RequestOutputKind, got {self.output_kind!r}",
                parameter="output_kind",
            ) from None

    def _validate_rare(self) -> None:
        if self.prompt_logprob_start is not None:
            _check_int("prompt_logprob_start", self.prompt_logprob_start, 0)
            if self.prompt_logprob_token_ids is None:
                raise ValidationError(
                    "prompt_logprob_start needs prompt_logprob_token_ids",
                    parameter="prompt_logprob_start",
                )
        if self.prompt_logprob_token_ids is not None:
            if not isinstance(self.prompt_logprob_token_ids, list):
                raise ValidationError(
                    "prompt_logprob_token_ids must be a list of lists of token ids",
                    parameter="prompt_logprob_token_ids",
                )
            for row in self.prompt_logprob_token_ids:
                _check_ids("prompt_logprob_token_ids", row, low=-1)
        if self.stream_interval is not None:
            _check_int("stream_interval", self.stream_interval, 1)
        if self.thinking_token_budget is not None:
            _check_int("thinking_token_budget", self.thinking_token_budget, 0)
        for name, kind in (
            ("structured_outputs", StructuredOutputsParams),
            ("repetition_detection", RepetitionDetectionParams),
            ("extra_args", dict),
        ):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise ValidationError(
                    f"{name} must be a {kind.__name__}, got {type(value).__name__}", parameter=name
                )
        if self.extra_args is not None:
            _check_extra_args(self.extra_args)
        for name, neutral in (
            ("watermarking", (None, False)),
            ("routed_experts_prompt_start", (0,)),
            ("trace_decode_token_ids", (None,)),
        ):
            if getattr(self, name) not in neutral:
                raise ValidationError(
                    f"{name} is not supported by Octavo; leave it out", parameter=name
                )


def _check_ids(name: str, value: Any, *, low: int = 0) -> None:
    if not isinstance(value, list):
        raise ValidationError(f"{name} must be a list of token ids", parameter=name)
    for token_id in value:
        _check_int(name, token_id, low)


def _check_extra_args(extra_args: dict[str, Any]) -> None:
    if is_deeper(extra_args, MAX_JSON_DEPTH):
        raise ValidationError(
            f"extra_args is nested deeper than {MAX_JSON_DEPTH} levels", parameter="extra_args"
        )
    left: list[Any] = [extra_args]
    num_values = 0
    while left:
        value = left.pop()
        num_values += 1
        if num_values + len(left) > MAX_EXTRA_VALUES:
            raise ValidationError(
                f"extra_args has more than {MAX_EXTRA_VALUES} values", parameter="extra_args"
            )
        if isinstance(value, dict):
            left.extend(value.values())
        elif isinstance(value, list | tuple):
            left.extend(value)
        elif isinstance(value, int) and not -MAX_INT - 1 <= value <= MAX_INT:
            raise ValidationError(
                "extra_args: an integer does not fit 64 bits", parameter="extra_args"
            )


def clamped(logit_bias: Mapping[Any, float]) -> dict[int, float]:
    """The biases cut to the allowed range, by token ids that may be strings (JSON has no others).
    Raises `ValidationError` for a key that is no integer.
    """
    clamped: dict[int, float] = {}
    for key, bias in logit_bias.items():
        try:
            token_id = int(key)
        except (TypeError, ValueError):
            raise ValidationError(
                f"logit_bias: {str(key)[:20]!r} is not a token id", parameter="logit_bias"
            ) from None
        _check_float("logit_bias", bias, -math.inf, math.inf)
        clamped[token_id] = min(MAX_BIAS, max(-MAX_BIAS, bias))
    return clamped


def _check_int(name: str, value: Any, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValidationError(
            f"{name} must be an integer, got {type(value).__name__}", parameter=name
        )
    if not low <= value <= (MAX_INT if high is None else high):
        is_open = high is None and value < low
        bounds = f"at least {low}" if is_open else f"between {low} and {high or MAX_INT}"
        raise ValidationError(f"{name} must be {bounds}, got {value}", parameter=name)


def _check_float(name: str, value: Any, low: float, high: float, *, above: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValidationError(
            f"{name} must be a number, got {type(value).__name__}", parameter=name
        )
    if not math.isfinite(value) or value > high or value < low or (above and value == low):
        left = "(" if above else "["
        raise ValidationError(
            f"{name} must be in {left}{low:g}, {high:g}], got {value}", parameter=name
        )
