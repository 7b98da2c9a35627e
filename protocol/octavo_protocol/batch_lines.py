"""The lines of an OpenAI batch: what one asks for, and the line that answers it."""

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import msgspec

from octavo_protocol.errors import ValidationError

_FIELDS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """One request of a batch. body: the JSON that `url` takes."""

    custom_id: str
    url: str
    body: dict[str, Any]

    @property
    def model(self) -> str:
        """ "" where the body names none."""
        model = self.body.get("model")
        return model if isinstance(model, str) else ""


def parse_line(line: bytes, urls: Collection[str]) -> BatchRequest:
    """`{"custom_id", "method": "POST", "url", "body"}`. Raises `ValidationError`."""
    given = _decoded(line)
    if not isinstance(given, dict):
        raise ValidationError("the line is not a JSON object")
    for name in _FIELDS:
        if name not in given:
            raise ValidationError(f"{name} is missing", parameter=name)
    custom_id, method, url, body = (given[name] for name in _FIELDS)
    if not isinstance(custom_id, str):
        raise ValidationError("custom_id must be a string", parameter="custom_id")
    if method != "POST":
        raise ValidationError(f"method must be POST, not {method!r}", parameter="method")
    if url not in urls:
        raise ValidationError(
            f"url {url!r} cannot be used in a batch; these can: {', '.join(sorted(urls))}",
            parameter="url",
        )
    if not isinstance(body, dict):
        raise ValidationError("body must be a JSON object", parameter="body")
    if body.get("stream"):
        raise ValidationError("an answer in a batch cannot be streamed", parameter="stream")
    if body.get("encoding_format") in ("bytes", "bytes_only"):
        raise ValidationError(
            "an answer in a batch is JSON: write float or base64", parameter="encoding_format"
        )
    return BatchRequest(custom_id, url, body)


def custom_id_of(line: bytes) -> str | None:
    """The custom_id of a line that is not a valid request, where it can be told."""
    try:
        given = _decoded(line)
    except ValidationError:
        return None
    found = given.get("custom_id") if isinstance(given, dict) else None
    return found if isinstance(found, str) else None


def answer_line(custom_id: str | None, status: int, body: Any, *, request_id: str) -> bytes:
    """One line of the output, for a request that got an answer. body: JSON, encoded or not."""
    return _encoded(
        custom_id, {"status_code": status, "request_id": request_id, "body": body}, None
    )


def error_line(custom_id: str | None, code: str, message: str) -> bytes:
    """One line of the error file, for a request that got no answer."""
    return _encoded(custom_id, None, {"code": code, "message": message})


def _encoded(custom_id: str | None, response: Any, error: Any) -> bytes:
    answer = {
        "id": f"batch_req_{secrets.token_hex(16)}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    return msgspec.json.encode(answer) + b"\n"


def _decoded(line: bytes) -> Any:
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValidationError(f"the line is not JSON: {error}") from error
