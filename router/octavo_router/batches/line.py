"""One line of a batch, from its request to its result."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from octavo_protocol.batch_lines import BatchRequest, answer_line, error_line
from octavo_router.batches.answering import Answer
from octavo_router.batches.dispatch import BusyError
from octavo_router.batches.records import Result, TokenCounts
from octavo_router.proxy import REPLICAS_FAILED

# Each try costs a replica where the request is poison, and an innocent one may share its replica's
# fate a few times.
MAX_TRIES = 5
_BUSY = (429, 503, 504)

Post = Callable[[str, bytes, dict[str, str]], Awaitable[Answer]]
CountTry = Callable[[], Awaitable[int]]
Outcome = tuple[Result, TokenCounts]


async def attempt(
    request: BatchRequest, request_id: str, *, post: Post, count_try: CountTry
) -> Outcome | None:
    """The result of a line; None: replicas failed over it, and it is to be tried again.

    A request that made replicas fail is a poison line after `MAX_TRIES` tries, which are counted
    over all workers that had it. Raises `BusyError` where there is no capacity for it now.
    """
    body = msgspec.json.encode(request.body)
    given = await post(request.url, body, {"x-request-id": request_id})
    content = _decoded(given)
    if given.status < 500 and given.status not in _BUSY:
        return _result(request, request_id, given.status, content)
    if given.status in _BUSY and _code(content) != REPLICAS_FAILED:
        raise BusyError(_retry_after_s(given))
    num_tries = await count_try()
    return _poison(request, num_tries, content) if num_tries >= MAX_TRIES else None


def _result(request: BatchRequest, request_id: str, status: int, content: Any) -> Outcome:
    line = answer_line(request.custom_id, status, content, request_id=request_id)
    return Result(status >= 400, line), _tokens(content)


def _poison(request: BatchRequest, num_tries: int, content: Any) -> Outcome:
    message = f"{num_tries} tries failed; the last one with: {_message(content)}"
    return Result(True, error_line(request.custom_id, REPLICAS_FAILED, message)), TokenCounts()


def _decoded(given: Answer) -> Any:
    try:
        return msgspec.json.decode(given.body)
    except msgspec.DecodeError:
        return {"error": {"message": f"status {given.status} without a JSON body"}}


def _retry_after_s(given: Answer) -> float:
    told = given.headers.get("retry-after", "")
    return float(told) if told.isdecimal() else 0.0


def _code(content: Any) -> Any:
    error = content.get("error") if isinstance(content, dict) else None
    return error.get("code") if isinstance(error, dict) else None


def _message(content: Any) -> str:
    error = content.get("error") if isinstance(content, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return str(message or "no message")


def _tokens(content: Any) -> TokenCounts:
    """From `usage`, in the words of completions or in those of responses."""
    usage = content.get("usage") if isinstance(content, dict) else None
    if not isinstance(usage, dict):
        return TokenCounts()
    given = _details(usage, "prompt_tokens_details", "input_tokens_details")
    taken = _details(usage, "completion_tokens_details", "output_tokens_details")
    return TokenCounts(
        input_tokens=_number(usage, "prompt_tokens", "input_tokens"),
        cached_tokens=_number(given, "cached_tokens"),
        output_tokens=_number(usage, "completion_tokens", "output_tokens"),
        reasoning_tokens=_number(taken, "reasoning_tokens"),
    )


def _details(usage: dict[str, Any], *names: str) -> dict[str, Any]:
    return next((usage[name] for name in names if isinstance(usage.get(name), dict)), {})


def _number(usage: dict[str, Any], *names: str) -> int:
    return next((usage[name] for name in names if isinstance(usage.get(name), int)), 0)
