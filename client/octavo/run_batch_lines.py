"""The lines that answer an OpenAI batch without a server: one output for all requests, where the
status of an answer stands beside its error, as `vllm run-batch` writes it.
"""

import json
import secrets
from typing import Any

from octavo_protocol.batch_lines import custom_id_of
from octavo_protocol.errors import ValidationError, error_body


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
