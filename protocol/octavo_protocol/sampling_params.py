"""`SamplingParams`: how one request is sampled. Names, defaults and ranges are vLLM's."""

import math
from enum import IntEnum
from typing import Any

import msgspec

from octavo_protocol.errors import ValidationError

GREEDY_EPSILON = 1e-5
MIN_TEMPERATURE = 0.01
MAX_N = 16384
MAX_LOGPROBS = 20
MAX_INT = 2**63 - 1  # what crosses to the engine process is a 64-bit integer


class RequestOutputKind(IntEnum):
    """What each streamed `RequestOutput` carries."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


class SamplingParams(msgspec.Struct, omit_defaults=True):
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
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE

    def __post_init__(self) -> None:
        if self.stop is None:
            self.stop = []
        elif isinstance(self.stop, str):
            self.stop = [self.stop]
        if self.stop_token_ids is None:
            self.stop_token_ids = []
        if self.seed == -1:
            self.seed = None
        if self.logprobs is True:
            self.logprobs = 1
        self._validate()
        if self.temperature < GREEDY_EPSILON:
            self.top_p, self.top_k, self.min_p = 1.0, 0, 0.0
        elif self.temperature < MIN_TEMPERATURE:
            self.temperature = MIN_TEMPERATURE

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_EPSILON

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        assert isinstance(self.stop, list)
        return self.stop

    def clone(self) -> "SamplingParams":
        """A copy that shares nothing mutable with this one."""
        copy = msgspec.structs.replace(self)
        copy.stop = list(self.stop_strings)
        copy.stop_token_ids = list(self.stop_token_ids or [])
        return copy

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
        if self.logprobs is not None:
            _check_int("logprobs", self.logprobs, 0, MAX_LOGPROBS)
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
