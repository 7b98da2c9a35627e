"""What every way to queue a request has in common: refusals, and defaults of its parameters."""

from typing import Any

import msgspec

from octavo.config import StructuredOutputsConfig
from octavo_protocol.beam_search import BeamSearchParams
from octavo_protocol.errors import ValidationError
from octavo_protocol.lora import LoRARequest
from octavo_protocol.pooling import PoolingParams
from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.engine.adapters import check_room
from octavo_runtime.engine.messages import EngineInfo
from octavo_runtime.engine.pooling_requests import refuse_pooling_model


def checked_adapter(lora_request: Any, info: EngineInfo) -> LoRARequest | None:
    """The adapter of one request. Raises TypeError for what is no `LoRARequest`, and
    `ValidationError` where the engine takes none.
    """
    if lora_request is None:
        return None
    if not isinstance(lora_request, LoRARequest):
        raise TypeError(f"expected LoRARequest, got {type(lora_request).__name__}")
    check_room(info)
    return lora_request


def refuse_missing(mm_processor_kwargs: Any) -> None:
    """Raises `ValidationError` for arguments of what is not there yet."""
    if mm_processor_kwargs:
        raise ValidationError(
            "mm_processor_kwargs: models here take text only; leave it out",
            parameter="mm_processor_kwargs",
        )


def refuse_profile_options(**options: Any) -> None:
    """Raises `ValidationError` for ways to profile that are not there."""
    for name, value in options.items():
        if value is not None:
            raise ValidationError(
                f"{name} is not supported: every step until stop_profile is recorded; leave it out",
                parameter=name,
            )


def checked_params(params: Any, structured: StructuredOutputsConfig) -> SamplingParams:
    """A copy of the parameters, under the engine's settings for structured outputs.

    Raises TypeError for what are no `SamplingParams`.
    """
    if isinstance(params, PoolingParams):
        raise ValidationError(
            "this model generates: it takes SamplingParams, not PoolingParams; to pool with it, "
            "start it with runner='pooling'",
            parameter="sampling_params",
        )
    if isinstance(params, BeamSearchParams):
        raise TypeError("BeamSearchParams are for LLM.beam_search(prompts, params)")
    if not isinstance(params, SamplingParams):
        raise TypeError(f"expected SamplingParams, got {type(params).__name__}")
    copied: SamplingParams = params.clone()
    constraint = copied.structured_outputs
    if constraint is not None:
        copied.structured_outputs = msgspec.structs.replace(
            constraint,
            disable_any_whitespace=constraint.disable_any_whitespace
            or structured.disable_any_whitespace,
            disable_additional_properties=constraint.disable_additional_properties
            or structured.disable_additional_properties,
        )
    return copied


def checked_pooling_params(params: Any, info: EngineInfo) -> PoolingParams:
    """The parameters. Raises `ValidationError` for those of a model that generates, TypeError for
    others.
    """
    if isinstance(params, SamplingParams | BeamSearchParams):
        refuse_pooling_model(info)
    if not isinstance(params, PoolingParams):
        raise TypeError(f"expected PoolingParams, got {type(params).__name__}")
    return params
