"""What traces tell of a request's way: each attempt on a replica, and why it went there."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from octavo_protocol.spans import NO_SPAN, AttributeValue, current_span

if TYPE_CHECKING:
    from octavo_router.decisions import Decision
    from octavo_router.proxy import ProxyRequest


def note_admitted(request: "ProxyRequest") -> None:
    """The request has waited for its turn until now."""
    if (span := current_span()) is not NO_SPAN:
        span.set(
            {
                "octavo.tenant": request.terms.caller.tenant.name,
                "octavo.deployment": request.deployment.name,
                "octavo.queue_s": time.perf_counter() - request.arrived,
                "gen_ai.request.model": request.model or "",
            }
        )


@contextmanager
def attempt_span(
    request: "ProxyRequest", decision: "Decision", *, is_continuation: bool
) -> Iterator["ProxyRequest"]:
    """The request as it goes to the replica: with the trace context of this attempt."""
    whole = current_span()
    if whole is NO_SPAN:
        yield request
        return
    attributes = _attributes(decision)
    whole.set(attributes)
    with whole.child("attempt", is_client=True) as attempt:
        attempt.set({**attributes, "octavo.is_continuation": is_continuation})
        try:
            yield replace(request, headers={**request.headers, **attempt.headers})
        except Exception as error:
            attempt.fail(str(error))
            raise


def _attributes(decision: "Decision") -> dict[str, AttributeValue]:
    return {
        "octavo.replica": decision.replica.replica_id,
        "octavo.policy": decision.policy,
        "octavo.prompt_tokens": decision.num_prompt_tokens,
        "octavo.predicted_cached_tokens": decision.num_cached_tokens,
        "octavo.attempts": decision.attempt,
    }
