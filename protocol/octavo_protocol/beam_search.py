"""`BeamSearchParams` and what a beam search returns. Names and defaults are vLLM's."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from octavo_protocol.errors import ValidationError
from octavo_protocol.lora import LoRARequest
from octavo_protocol.outputs import Logprob
from octavo_protocol.sampling_params import MAX_N
from octavo_protocol.structured_outputs import StructuredOutputsParams


class BeamSearchParams(msgspec.Struct, omit_defaults=True):
    """How to search for the `beam_width` most likely continuations.

    length_penalty: a beam's score is its log-probability / (generated tokens ** length_penalty);
    above 1 favours long outputs, 0 compares sums. ignore_eos: end tokens end nothing.
    allowed_token_ids: no other token is generated.

    Raises `ValidationError` that names the parameter.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    structured_outputs: StructuredOutputsParams | None = None
    skip_special_tokens: bool = True
    watermarking: bool | None = None
    allowed_token_ids: list[int] | None = None

    def __post_init__(self) -> None:
        _check_range("beam_width", self.beam_width, 1, MAX_N)
        _check_range("max_tokens", self.max_tokens, 1, None)
        for name, low, high in (("temperature", 0.0, 2.0), ("length_penalty", -100.0, 100.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValidationError(f"{name} must be a number, got {value!r}", parameter=name)
            if not low <= value <= high:
                raise ValidationError(
                    f"{name} must be in [{low:g}, {high:g}], got {value}", parameter=name
                )
        if self.watermarking:
            raise ValidationError(
                "watermarking is not supported by Octavo; leave it out", parameter="watermarking"
            )
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise ValidationError(
                "allowed_token_ids must not be empty: no token could be chosen",
                parameter="allowed_token_ids",
            )


@dataclass(slots=True)
class BeamSearchSequence:
    """One beam. tokens: prompt and generated ones; logprobs: of the generated ones.

    text: the decoded tokens, prompt included. finish_reason: "stop", "length" or None while it is
    searched on.
    """

    tokens: list[int]
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    lora_request: LoRARequest | None = None
    cum_logprob: float = 0.0
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    orig_prompt: Any = None


@dataclass(slots=True)
class BeamSearchOutput:
    """The best beams of one prompt, best first."""

    sequences: list[BeamSearchSequence]


def _check_range(name: str, value: Any, low: int, high: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValidationError(f"{name} must be an integer, got {value!r}", parameter=name)
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValidationError(f"{name} must be {bounds}, got {value}", parameter=name)
