"""Trying again what may go better the next time."""

import time
from collections.abc import Callable
from typing import TypeVar

import httpx

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.remote.files import TransferInterrupted

Answer = TypeVar("Answer")

_NUM_ATTEMPTS = 4
_FIRST_PAUSE_S = 0.5


def patiently(
    ask: Callable[[], Answer], what: str, *, sleep: Callable[[float], None] = time.sleep
) -> Answer:
    """The answer of a short request; repeated while the server is busy or cannot be reached.

    Raises `ConfigError` when it stays so.
    """
    for attempt in range(1, _NUM_ATTEMPTS + 1):
        try:
            return ask()
        except (TransferInterrupted, httpx.TransportError) as error:
            if attempt == _NUM_ATTEMPTS:
                raise ConfigError(
                    f"{what} cannot be reached: {str(error) or type(error).__name__}. Check the "
                    "address, the network and its proxies (HTTPS_PROXY)."
                ) from error
            sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1))
    raise AssertionError("unreachable")
