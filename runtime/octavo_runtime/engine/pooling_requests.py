"""The API side of pooling: checks a request against the model, and makes its output."""

import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from octavo_protocol.errors import GenerationError, UnavailableError, ValidationError
from octavo_protocol.outputs import RequestStateStats
from octavo_protocol.pooling import PoolingOutput, PoolingParams, PoolingRequestOutput
from octavo_runtime.engine.failures import error_of
from octavo_runtime.engine.messages import EngineInfo, PoolingInfo, PoolingRequest, PoolingResult
from octavo_runtime.engine.request_checks import check_id_and_priority, check_token_ids

# Parameters by the tasks that they are for; use_activation is for all.
_FOR_TASKS = {
    "dimensions": ("embed", "token_embed"),
    "step_tag_id": ("token_classify",),
    "returned_token_ids": ("token_classify",),
}
_UNSUPPORTED = ("late_chunking_params", "late_interaction_params", "extra_kwargs")


def pooling_request(
    info: EngineInfo,
    request_id: str,
    prompt_token_ids: Sequence[int],
    params: PoolingParams,
    *,
    token_type_ids: Sequence[int] = (),
    priority: int = 0,
    cache_salt: str = "",
) -> PoolingRequest:
    """What the engine takes; nothing that it gets can make it fail.

    Raises `ValidationError` for what the model cannot do, TypeError for what is no such value.
    """
    pooling = info.pooling
    if pooling is None:
        raise ValidationError(
            "this model generates text: it takes generate, not embed, classify, score or encode. "
            "To pool with it, start it with runner='pooling' (--runner pooling)",
            parameter="task",
        )
    if not isinstance(params, PoolingParams):
        raise TypeError(f"expected PoolingParams, got {type(params).__name__}")
    check_id_and_priority(request_id, priority)
    token_ids = _checked_prompt(info, prompt_token_ids)
    return PoolingRequest(
        request_id=request_id,
        prompt_token_ids=token_ids,
        params=_completed(pooling, params),
        arrival_time=time.time(),
        token_type_ids=_checked_types(pooling, token_type_ids, len(token_ids)),
        priority=priority,
        cache_salt=cache_salt,
    )


def pooling_output(
    request: PoolingRequest, result: PoolingResult, queued_ts: float, ended_ts: float
) -> PoolingRequestOutput[PoolingOutput]:
    """The result as its reader gets it, with an array over the bytes that came.

    queued_ts, ended_ts: when it was sent and came back, by the monotonic clock.
    Raises `UnavailableError` for a request that the engine aborted, `GenerationError` for one
    that it could not compute.
    """
    if result.finish_reason == "abort":
        raise UnavailableError("the engine has aborted the request: it sleeps or stops")
    if result.finish_reason == "error":
        message = result.error or "the engine refused the request"
        raise error_of(result.error_kind, message, GenerationError)
    data = np.frombuffer(result.data, dtype="<f4").reshape(result.shape)
    return PoolingRequestOutput(
        request_id=request.request_id,
        outputs=PoolingOutput(data),
        prompt_token_ids=request.prompt_token_ids,
        num_cached_tokens=result.num_cached_tokens,
        metrics=RequestStateStats(
            arrival_time=request.arrival_time,
            queued_ts=queued_ts,
            scheduled_ts=result.scheduled_ts,
            first_token_ts=ended_ts,
            last_token_ts=ended_ts,
            first_token_latency=ended_ts - queued_ts,
        ),
    )


def unfinished_error(request_id: str) -> ValidationError:
    """For a request with the id of one that still runs."""
    return ValidationError(
        f"request {request_id!r} is not finished yet: give another request_id",
        parameter="request_id",
    )


def refuse_pooling_model(info: EngineInfo) -> None:
    """Raises `ValidationError` where the model pools and is asked to generate."""
    if info.pooling is not None:
        raise ValidationError(
            f"this model pools ({', '.join(info.pooling.tasks)}) and does not generate: use "
            f"{_METHODS[info.pooling.task]}",
            parameter="model",
        )


_METHODS = {
    "embed": "embed (/v1/embeddings)",
    "classify": "classify or score (/classify, /score)",
    "token_embed": "encode (/pooling)",
    "token_classify": "encode (/pooling)",
}


def _completed(pooling: PoolingInfo, params: PoolingParams) -> PoolingParams:
    """A copy with the task and the default dimensions in it, checked."""
    task = params.task or pooling.task
    if task not in pooling.tasks:
        raise ValidationError(
            f"this model cannot {task}: its tasks are {', '.join(pooling.tasks)}", parameter="task"
        )
    for name in _UNSUPPORTED:
        if getattr(params, name):
            raise ValidationError(f"{name} is not supported: leave it out", parameter=name)
    for name, tasks in _FOR_TASKS.items():
        if getattr(params, name) is not None and task not in tasks:
            raise ValidationError(
                f"{name} is for {' and '.join(tasks)}, not for {task}", parameter=name
            )
    _check_columns(pooling, params.returned_token_ids or [])
    dimensions = params.dimensions
    if dimensions is not None:
        _check_dimensions(pooling, dimensions)
    elif task in _FOR_TASKS["dimensions"]:
        dimensions = pooling.dimensions
    return msgspec.structs.replace(params, task=task, dimensions=dimensions)


def _check_columns(pooling: PoolingInfo, columns: Sequence[int]) -> None:
    _check_integers("returned_token_ids", columns)
    num_columns = len(pooling.labels)
    if any(not 0 <= column < num_columns for column in columns):
        raise ValidationError(
            f"returned_token_ids must be from 0 to {num_columns - 1}, the columns of this model's "
            f"logits; got {list(columns)}",
            parameter="returned_token_ids",
        )


def _check_dimensions(pooling: PoolingInfo, dimensions: int) -> None:
    if not pooling.matryoshka:
        raise ValidationError(
            f"this model was trained for {pooling.embedding_size} dimensions alone (it is no "
            "Matryoshka model): leave dimensions out",
            parameter="dimensions",
        )
    allowed = pooling.matryoshka_dimensions
    if allowed and dimensions not in allowed:
        raise ValidationError(
            f"dimensions must be one of {', '.join(map(str, allowed))}, got {dimensions}",
            parameter="dimensions",
        )
    if dimensions > pooling.embedding_size:
        raise ValidationError(
            f"dimensions must be at most {pooling.embedding_size}, got {dimensions}",
            parameter="dimensions",
        )


def _checked_prompt(info: EngineInfo, prompt_token_ids: Sequence[int]) -> list[int]:
    token_ids = list(prompt_token_ids)
    if not token_ids:
        raise ValidationError("prompt cannot be empty", parameter="prompt")
    if len(token_ids) > info.max_model_len:
        raise ValidationError(
            f"the prompt has {len(token_ids)} tokens; this model takes {info.max_model_len}: "
            "shorten it, or set truncate_prompt_tokens (-1: to what the model takes)",
            parameter="prompt",
            code="context_length_exceeded",
        )
    _check_integers("prompt", token_ids)
    check_token_ids("prompt", (min(token_ids), max(token_ids)), info.vocab_size)
    return token_ids


def _checked_types(pooling: PoolingInfo, token_type_ids: Sequence[int], count: int) -> list[int]:
    types = list(token_type_ids)
    if not types:
        return types
    if len(types) != count:
        raise ValidationError(
            f"{len(types)} token_type_ids for {count} tokens: give one per token",
            parameter="token_type_ids",
        )
    _check_integers("token_type_ids", types)
    if min(types) < 0 or max(types) >= pooling.num_token_types:
        raise ValidationError(
            f"token_type_ids must be from 0 to {pooling.num_token_types - 1} for this model",
            parameter="token_type_ids",
        )
    return types


def _check_integers(name: str, values: Sequence[Any]) -> None:
    if not set(map(type, values)) <= {int}:
        wrong = next(value for value in values if type(value) is not int)
        raise ValidationError(f"{name} must be integers, got {wrong!r}", parameter=name)
