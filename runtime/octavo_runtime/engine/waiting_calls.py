"""Control calls of the API side: carried out between steps, answered when there is an answer."""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from octavo_protocol.errors import OctavoError, ValidationError
from octavo_runtime.engine.failures import kind_of
from octavo_runtime.engine.messages import Control, ControlResult

logger = logging.getLogger(__name__)

# What the API side may call between steps. Values and arguments are what msgpack can carry; a
# method that takes its time returns a Future.
CONTROL_METHODS = frozenset(
    {
        "reset_prefix_cache",
        "sleep",
        "wake_up",
        "is_sleeping",
        "start_profile",
        "stop_profile",
        "load_adapter",
        "unload_adapter",
        "pin_adapter",
        "list_adapters",
    }
)


class WaitingCalls:
    """Calls methods of a core and keeps those calls that have no answer yet.

    A sleep that returns False is called again after each step: the engine drains for it.
    """

    def __init__(self, answer: Callable[[ControlResult], None]) -> None:
        self._answer = answer
        self._sleeps: list[Control] = []
        self._futures: dict[int, Future[Any]] = {}

    def call(self, core: object, call: Control) -> None:
        """Carries a call out, and answers it or keeps it."""
        try:
            value = _method(core, call.method)(**call.arguments)
        except OctavoError as error:
            self._refuse(call.call_id, error)
            return
        except Exception as error:
            logger.exception("%s failed", call.method)
            self._refuse(call.call_id, error)
            return
        if isinstance(value, Future):
            self._futures[call.call_id] = value
            return
        if call.method == "sleep" and value is False:
            self._sleeps.append(call)
            return
        if call.method == "wake_up":  # whoever still waits for the sleep would wait for ever
            self._end_sleeps()
        self._answer(ControlResult(call.call_id, value))

    def look(self, core: object) -> None:
        """Answers what can be answered by now. To be called after each step."""
        sleeps, self._sleeps = self._sleeps, []
        for sleep in sleeps:
            self.call(core, sleep)
        for call_id, future in list(self._futures.items()):
            if future.done():
                del self._futures[call_id]
                self._answer_future(call_id, future)

    def _answer_future(self, call_id: int, future: Future[Any]) -> None:
        error = future.exception()
        if error is None:
            self._answer(ControlResult(call_id, future.result()))
            return
        if not isinstance(error, OctavoError):
            logger.error("a control call failed", exc_info=error)
        self._refuse(call_id, error)

    def _end_sleeps(self) -> None:
        for sleep in self._sleeps:
            self._refuse(sleep.call_id, ValidationError("the engine was woken up meanwhile"))
        self._sleeps.clear()

    def _refuse(self, call_id: int, error: BaseException) -> None:
        message = f"{type(error).__name__}: {error}"
        if isinstance(error, OctavoError):
            message = error.message
        self._answer(ControlResult(call_id, error=message, error_kind=kind_of(error)))


def _method(core: object, name: str) -> Callable[..., Any]:
    """Raises `ValidationError`."""
    method = getattr(core, name, None) if name in CONTROL_METHODS else None
    if method is None:
        raise ValidationError(f"the engine has no method {name!r}")
    return method  # type: ignore[no-any-return]
