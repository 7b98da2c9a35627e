"""Errors under vLLM's names.

Each is one of Octavo's own (`octavo_protocol.errors`) or a leaf beside them, so that `except` works
with either name. `VLLMValidationError` is a ValueError too, as it was until 2026.
"""

from octavo_protocol.errors import (
    AdapterNotFoundError,
    ClientError,
    GenerationError,
    NotFoundError,
    OctavoError,
    ServerError,
    UnavailableError,
    ValidationError,
)

VLLMError = OctavoError
VLLMClientError = ClientError
VLLMValidationError = ValidationError
VLLMNotFoundError = NotFoundError
LoRAAdapterNotFoundError = AdapterNotFoundError
# Octavo answers 400 where vLLM tells 422 apart, and 503 for every kind of overload.
VLLMUnprocessableEntityError = ChatTemplateResolutionError = ValidationError
VLLMServerError = ServerError
RetryableRequestError = GracefulHTTPError = UnavailableError
QueueOverflowError = MaxQueuedTokensError = UnavailableError
ProfilerAlreadyActiveError = ValidationError

__all__ = [
    "ChatTemplateResolutionError",
    "GenerationError",
    "GracefulHTTPError",
    "LoRAAdapterNotFoundError",
    "MaxQueuedTokensError",
    "ProfilerAlreadyActiveError",
    "QueueOverflowError",
    "RetryableRequestError",
    "VLLMClientError",
    "VLLMError",
    "VLLMNotFoundError",
    "VLLMServerError",
    "VLLMUnprocessableEntityError",
    "VLLMValidationError",
]
