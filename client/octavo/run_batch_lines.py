"""The lines of an OpenAI batch: what one asks for, and the line that answers it."""

import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from octavo_protocol.errors import ValidationError, error_body

_FIELDS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """One request of a batch. body: the JSON that `url` takes."""

    custom_id: str
    url: str
    body: dict[str, Any]


def parse_line(line: bytes, urls: Collection[str]) -> BatchRequest:
    """`{"custom_id", "method": "POST", "url", "body"}`. Raises `ValidationError`."""
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValidationError(f"the line is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise ValidationError("the line is not a JSON object")
    for name in _FIELDS:
        if name not in given:
            raise ValidationError(f"{name} is missing", parameter=name)
    if not isinstance(given["custom_id"], str):
        raise ValidationError("custom_id must be a string", parameter="custom_id")
    if given["method"] != "POST":
        raise ValidationError(f"method must be POST, not {given['method']!r}", parameter="method")
    if given["url"] not in urls:
        raise ValidationError(
            f"url {given['url']!r} cannot be used in a batch; these can: {', '.join(sorted(urls))}",
            parameter="url",
        )
    body = given["body"]
    if not isinstance(body, dict):
        raise ValidationError("body must be a JSON object", parameter="body")
    if body.get("stream"):
        raise ValidationError("an answer in a batch cannot be streamed", parameter="stream")
    if body.get("encoding_format") in ("bytes", "bytes_only"):
        raise ValidationError(
            "an answer in a batch is JSON: write float or base64", parameter="encoding_format"
        )
    return BatchRequest(given["custom_id"], given["url"], body)


def custom_id_of(line: bytes) -> str | None:
    """The custom_id of a line that is not a valid request, where it can be told."""
    try:
        given = json.loads(line)
    except (ValueError, RecursionError):
        return None
    found = given.get("custom_id") if isinstance(given, dict) else None
    return found if isinstance(found, str) else None


def answer_line(
    custom_id: str | None, status: int, body: Any, *, request_id: str | None = None
) -> bytes:
    """One line of the output. `error` repeats the error of a body that is one."""
    error = body.get("error") if status >= 400 and isinstance(body, dict) else None
    answer = {
        "id": f"batch-{secrets.token_hex(16)}",
        "custom_id": custom_id,
        "response": {
            "status_code": status,
            "request_id": request_id or f"batch-request-{secrets.token_hex(16)}",
            "body": body,
        },
        "error": error,
    }
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def refusal_line(number: int, line: bytes, error: ValidationError) -> bytes:
    """The output for the input's line `number` (from 1) that is no request."""
    body = error_body(
        f"line {number}: {error.message}",
        error_type=error.error_type,
        code=error.status_code,
        parameter=error.parameter,
    )
    return answer_line(custom_id_of(line), error.status_code, body)
