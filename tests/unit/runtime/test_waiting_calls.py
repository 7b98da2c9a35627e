"""Control calls: what is answered at once, later, with an error, and how errors cross over."""

from concurrent.futures import Future
from typing import Any

import pytest

from octavo_protocol.errors import NotFoundError, UnavailableError
from octavo_runtime.engine.messages import Control, ControlResult
from octavo_runtime.engine.waiting_calls import WaitingCalls


class Core:
    """load: what `load_adapter` returns. has_drained: for `sleep`."""

    def __init__(self) -> None:
        self.load: Future[dict[str, Any]] = Future()
        self.has_drained = False

    def load_adapter(self, name: str) -> Future[dict[str, Any]]:
        return self.load

    def unload_adapter(self, name: str) -> None:
        raise NotFoundError(f"no {name}")

    def is_sleeping(self) -> bool:
        return False

    def sleep(self) -> bool:
        return self.has_drained

    def wake_up(self) -> bool:
        return True

    def secret(self) -> str:
        return "never"


@pytest.fixture
def answers() -> list[ControlResult]:
    return []


@pytest.fixture
def calls(answers: list[ControlResult]) -> WaitingCalls:
    return WaitingCalls(answers.append)


def test_a_call_that_takes_its_time_keeps_nobody_waiting(
    calls: WaitingCalls, answers: list[ControlResult]
) -> None:
    core = Core()
    calls.call(core, Control(1, "load_adapter", {"name": "a"}))
    calls.call(core, Control(2, "is_sleeping"))
    calls.look(core)
    assert answers == [ControlResult(2, False)]
    core.load.set_result({"version": "v"})
    calls.look(core)
    calls.look(core)
    assert answers == [ControlResult(2, False), ControlResult(1, {"version": "v"})]


def test_errors_keep_their_kind(calls: WaitingCalls, answers: list[ControlResult]) -> None:
    core = Core()
    calls.call(core, Control(1, "unload_adapter", {"name": "a"}))
    calls.call(core, Control(2, "load_adapter", {"name": "a"}))
    core.load.set_exception(UnavailableError("full"))
    calls.look(core)

    assert answers == [
        ControlResult(1, error="no a", error_kind="NotFoundError"),
        ControlResult(2, error="full", error_kind="UnavailableError"),
    ]


def test_methods_that_are_not_for_the_api_side_and_wrong_arguments_are_refused(
    calls: WaitingCalls, answers: list[ControlResult]
) -> None:
    core = Core()
    for number, method in enumerate(("secret", "pin_adapter", "__init__")):
        calls.call(core, Control(number, method))
    calls.call(core, Control(3, "load_adapter", {"wrong": 1}))

    messages = [answer.error or "" for answer in answers]
    assert messages[:3] == [
        f"the engine has no method {name!r}" for name in ("secret", "pin_adapter", "__init__")
    ]
    assert messages[3].startswith("TypeError")


def test_a_sleep_waits_for_the_engine_and_ends_when_it_is_woken_up(
    calls: WaitingCalls, answers: list[ControlResult]
) -> None:
    core = Core()
    calls.call(core, Control(1, "sleep"))
    calls.look(core)
    assert answers == []
    calls.call(core, Control(2, "wake_up"))
    core.has_drained = True
    calls.look(core)
    calls.call(core, Control(3, "sleep"))

    [first, *rest] = answers
    assert first.call_id == 1
    assert first.error == "the engine was woken up meanwhile"
    assert rest == [ControlResult(2, True), ControlResult(3, True)]
