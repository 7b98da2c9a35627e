"""Checks that requests of either kind, to generate or to pool, have in common."""

from collections.abc import Iterable
from typing import Any

from octavo_protocol.errors import ValidationError
from octavo_protocol.sampling_params import MAX_INT


def check_id_and_priority(request_id: Any, priority: Any) -> None:
    """Raises TypeError for an id, `ValidationError` for a priority that cannot be one."""
    if not isinstance(request_id, str):
        raise TypeError(f"request_id must be a string, not {type(request_id).__name__}")
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > MAX_INT:
        raise ValidationError(
            f"priority must be an integer of 64 bits, got {priority!r}", parameter="priority"
        )


def check_token_ids(name: str, token_ids: Iterable[int], vocab_size: int) -> None:
    """Raises `ValidationError` for the first one outside the vocabulary. name: the parameter's."""
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise ValidationError(
                f"{name}: token id {token_id} is outside the vocabulary of {vocab_size} tokens",
                parameter=name,
            )
