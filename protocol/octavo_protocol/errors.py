"""The tree of errors that a caller can meet, and its one mapping to HTTP.

    OctavoError                     500  internal_error
    ├── ClientError                 400  invalid_request_error
    │   ├── ValidationError         400  invalid_request_error   (also a ValueError)
    │   ├── AuthenticationError     401  authentication_error
    │   ├── ForbiddenError          403  permission_error
    │   ├── NotFoundError           404  not_found_error
    │   │   └── AdapterNotFoundError 404  not_found_error
    │   ├── GoneError               410  invalid_request_error
    │   ├── RequestTooLargeError    413  invalid_request_error
    │   ├── OtherRequestError       422  invalid_request_error
    │   └── RateLimitError          429  rate_limit_error        (try again later)
    ├── ConfigError                 500  config_error            (also a ValueError; start-up only)
    └── ServerError                 500  internal_error
        ├── GenerationError         500  internal_error
        ├── UnavailableError        503  service_unavailable     (retryable elsewhere)
        └── DeadlineError           504  timeout_error

A test asserts that every class is in the table of `http_status`.
"""

import math
from collections.abc import Mapping
from typing import Any

REASON_HEADER = "x-octavo-reason"


class OctavoError(Exception):
    """Base of every error that Octavo raises on purpose. headers: of the answer that tells it."""

    status_code = 500
    error_type = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        parameter: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.parameter = parameter
        self.code = code
        self.headers = dict(headers or {})


class ClientError(OctavoError):
    """The request cannot be served as it is; sending it again will not help."""

    status_code = 400
    error_type = "invalid_request_error"


class ValidationError(ClientError, ValueError):
    """A value is out of range, of the wrong type, or in conflict with another.

    value: what was given, where the message is to end with it and the parameter's name.
    """

    def __init__(
        self,
        message: str,
        *,
        parameter: str | None = None,
        code: str | None = None,
        value: Any = None,
    ) -> None:
        if value is not None:
            message = f"{message} (parameter={parameter}, value={value!r})"
        super().__init__(message, parameter=parameter, code=code)
        self.value = value


class AuthenticationError(ClientError):
    """No valid API key came with the request."""

    status_code = 401
    error_type = "authentication_error"


class ForbiddenError(ClientError):
    """The key is known, and may not do this."""

    status_code = 403
    error_type = "permission_error"


class NotFoundError(ClientError):
    """The model or resource that the request names does not exist."""

    status_code = 404
    error_type = "not_found_error"


class AdapterNotFoundError(NotFoundError):
    """There is no such LoRA adapter: not at its source, or not in the engine any more."""


class GoneError(ClientError):
    """What the request goes on with is no longer kept."""

    status_code = 410


class OtherRequestError(ClientError):
    """An idempotency key came with another request than before."""

    status_code = 422


class RequestTooLargeError(ClientError):
    """The body exceeds the server's limit in bytes."""

    status_code = 413


class RateLimitError(ClientError):
    """A limit of the caller's forbids the request for now."""

    status_code = 429
    error_type = "rate_limit_error"


class ConfigError(OctavoError, ValueError):
    """A setting, a checkpoint or the machine does not allow to start."""

    error_type = "config_error"


class ServerError(OctavoError):
    """The server failed; the request was fine."""


class GenerationError(ServerError):
    """The engine failed while it worked on the request."""


class UnavailableError(ServerError):
    """No capacity at this moment: starting, draining, overloaded or gone. Retry elsewhere."""

    status_code = 503
    error_type = "service_unavailable"


class DeadlineError(ServerError):
    """The time that the client gave for its answer is over."""

    status_code = 504
    error_type = "timeout_error"


def refusal_headers(reason: str, retry_after_s: float | None = None) -> dict[str, str]:
    """Why a request is refused, in one word for programs; when to send it again."""
    headers = {REASON_HEADER: reason}
    if retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
    return headers


def error_body(
    message: str, *, error_type: str, code: str | int | None = None, parameter: str | None = None
) -> dict[str, Any]:
    """The OpenAI error envelope: `{"error": {"message", "type", "param", "code"}}`."""
    return {"error": {"message": message, "type": error_type, "param": parameter, "code": code}}


def envelope(error: OctavoError) -> tuple[int, dict[str, Any]]:
    """HTTP status and JSON body for `error`. `code` is the status where none was given."""
    body = error_body(
        error.message,
        error_type=error.error_type,
        code=error.code if error.code is not None else error.status_code,
        parameter=error.parameter,
    )
    return error.status_code, body
