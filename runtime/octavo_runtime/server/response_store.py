"""Answers of /v1/responses that were asked to be kept: in memory, the oldest forgotten first."""

from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from octavo_protocol.errors import NotFoundError, ValidationError
from octavo_protocol.openai.response_answers import OutputItem, Response
from octavo_protocol.openai.response_items import InputItem
from octavo_protocol.openai.responses import STORE_VARIABLE

_MAX_RESPONSES = 1000


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """items: the conversation so far, the answer's own items included."""

    response: Response
    items: tuple[InputItem, ...]


class ResponseStore:
    """At most `capacity` answers; 0: nothing is kept, and who asks for an answer learns why."""

    def __init__(self, capacity: int = _MAX_RESPONSES) -> None:
        self._capacity = capacity
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()

    @property
    def is_enabled(self) -> bool:
        return self._capacity > 0

    def put(self, response: Response, items: list[InputItem]) -> None:
        """items: of the conversation that `response` answers."""
        said = [_as_input(item) for item in response.output]
        self._stored[response.id] = StoredResponse(response, (*items, *said))
        while len(self._stored) > self._capacity:
            self._stored.popitem(last=False)

    def get(self, response_id: str, *, parameter: str | None = None) -> StoredResponse:
        """Raises `ValidationError` where nothing is kept, `NotFoundError` where this is not."""
        if not self.is_enabled:
            raise ValidationError(
                "this server keeps no responses: send the whole conversation as input, or start "
                f"the server with {STORE_VARIABLE}=1",
                parameter=parameter,
            )
        stored = self._stored.get(response_id)
        if stored is None:
            raise NotFoundError(
                f"there is no response {response_id[:80]!r}; only the last {self._capacity} "
                "finished ones are kept",
                parameter=parameter,
            )
        return stored


def _as_input(item: OutputItem) -> InputItem:
    return InputItem.model_validate(msgspec.to_builtins(item))
