"""How a replica ends: asked to, or because its engine died."""

import json
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.fakes.fake_engine_core import FATAL
from tests.integration.replica.conftest import StartReplica
from tests.integration.replica.harness import Replica, eventually

from octavo_protocol.continuation import CONTINUE, TRACE_HEADER

pytestmark = [pytest.mark.integration]

COMPLETIONS = "/v1/completions"
BODY: dict[str, Any] = {"prompt": "the dog", "max_tokens": 30, "stream": True}


def events_of(lines: list[str]) -> list[Any]:
    data = [line.removeprefix("data: ") for line in lines if line]
    assert data[-1] == "[DONE]"
    return [json.loads(each) for each in data[:-1]]


class OpenBody:
    """A request whose body is never finished: it keeps a stopping replica up until closed."""

    def __init__(self, replica: Replica) -> None:
        self._socket = socket.create_connection(("127.0.0.1", replica.port))
        self._socket.sendall(
            f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{".encode()
        )

    def __enter__(self) -> "OpenBody":
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()


def test_sigterm_finishes_streams_and_refuses_new_requests(start_replica: StartReplica) -> None:
    replica = start_replica(step_s=0.1).wait_ready()
    with replica.http.stream("POST", COMPLETIONS, json=BODY) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        replica.terminate()

        eventually(lambda: replica.status("/ready") == 503, "the replica drains")
        assert replica.http.get("/ready").json()["stage"] == "draining"
        assert replica.http.get("/health").status_code == 200
        refused = replica.http.post(COMPLETIONS, json=BODY)
        rest = list(lines)

    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert "draining" in refused.json()["error"]["message"]
    events = events_of([first, *rest])
    assert sum("choices" in event for event in events) == len(events)
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert replica.wait_exit() == 0


def test_sigterm_waits_for_an_answer_that_is_not_streamed(start_replica: StartReplica) -> None:
    replica = start_replica(step_s=0.1).wait_ready()
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(replica.url + COMPLETIONS, json=BODY | {"stream": False}))

    thread = threading.Thread(target=ask)
    thread.start()
    eventually(lambda: replica.metric("requests_running") == 1, "the request runs")
    replica.terminate()
    thread.join()

    assert answers[0].json()["choices"][0]["finish_reason"] == "length"
    assert replica.wait_exit() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_every_process_still_finishes_streams(
    start_replica: StartReplica, number: signal.Signals
) -> None:
    """Ctrl-C does so, and supervisors that signal a whole group: the engine must not obey it."""
    replica = start_replica(step_s=0.1).wait_ready()
    with replica.http.stream("POST", COMPLETIONS, json=BODY) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        os.kill(replica.engine_pid(), number)
        replica.process.send_signal(number)
        events = events_of([first, *lines])

    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert replica.wait_exit() == 0


def test_idle_replica_stops_at_once(start_replica: StartReplica) -> None:
    replica = start_replica().wait_ready()
    engine = replica.engine_pid()

    replica.terminate()

    assert replica.wait_exit() == 0
    assert not is_alive(engine)
    assert "Traceback" not in replica.log


def test_drain_ends_at_its_limit(start_replica: StartReplica) -> None:
    replica = start_replica(step_s=0.1, drain_timeout_s=0.5).wait_ready()
    with replica.http.stream("POST", COMPLETIONS, json=BODY | {"max_tokens": 200}) as answer:
        lines = answer.iter_lines()
        next(lines)
        replica.terminate()
        assert replica.wait_exit() == 0

    assert "did not finish in time" in replica.log


@pytest.mark.parametrize("end", ["its drain is over", "its engine dies"])
def test_a_traced_stream_that_is_cut_off_can_go_on_elsewhere(
    start_replica: StartReplica, end: str
) -> None:
    cut, other = start_replica(step_s=0.1, drain_timeout_s=0.5), start_replica()
    cut.wait_ready()
    headers = {TRACE_HEADER: "1", "x-request-id": "r"}
    body = BODY | {"max_tokens": 40}
    with cut.http.stream("POST", COMPLETIONS, json=body, headers=headers) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        if end == "its drain is over":
            cut.terminate()
        else:
            cut.kill_engine()
        shown = [line for line in [first, *lines] if line]
    trace = [json.loads(line.removeprefix(":~")) for line in shown if line.startswith(":~")]
    asked = {"head": answer.headers[TRACE_HEADER], "trace": trace, "request": body}
    rest = other.wait_ready().http.post(CONTINUE + COMPLETIONS, json=asked, headers=headers)
    undisturbed = other.http.post(COMPLETIONS, json=body, headers={"x-request-id": "r"})

    assert 0 < len(trace) < 40
    assert shown[-1].startswith(":~")
    events = [line for line in [*shown, *rest.text.split("\n")] if line and line[:2] != ":~"]
    assert said(events_of(events)) == said(events_of(undisturbed.text.split("\n")))


def said(events: list[Any]) -> tuple[str, str]:
    """Text and finish reason of a stream of one choice."""
    choices = [event["choices"][0] for event in events]
    return "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"]


def test_second_sigterm_stops_without_waiting(start_replica: StartReplica) -> None:
    replica = start_replica(step_s=0.1).wait_ready()
    with replica.http.stream("POST", COMPLETIONS, json=BODY | {"max_tokens": 250}) as answer:
        lines = answer.iter_lines()
        next(lines)
        replica.terminate()
        eventually(lambda: replica.status("/ready") == 503, "the replica drains")
        replica.terminate()
        assert replica.wait_exit() == 0


def test_sigterm_while_loading_stops_cleanly(start_replica: StartReplica) -> None:
    replica = start_replica(start_s=3.0)
    eventually(lambda: replica.status("/health") == 200, "the replica listens")
    assert replica.http.get("/ready").json()["stage"] == "loading"
    refused = replica.http.post(COMPLETIONS, json=BODY)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")

    replica.terminate()

    assert replica.wait_exit() == 0
    assert "Traceback" not in replica.log


def test_engine_that_cannot_start_is_reported(start_replica: StartReplica) -> None:
    replica = start_replica(failure="the model does not fit")

    assert replica.wait_exit() == 1
    assert "the model does not fit" in replica.log


def test_death_of_the_engine_ends_streams_with_an_error(start_replica: StartReplica) -> None:
    replica = start_replica(step_s=0.1).wait_ready()
    with OpenBody(replica), replica.http.stream("POST", COMPLETIONS, json=BODY) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        replica.kill_engine()
        events = events_of([first, *lines])

        assert events[-1]["error"]["type"] == "internal_error"
        assert events[-1]["error"]["message"] == "the engine process ended with status -9"
        assert events[-1]["error"]["code"] == 500
        eventually(lambda: replica.status("/health") == 503, "/health tells of the death")
        assert replica.http.get("/ready").json()["stage"] == "engine stopped"
        assert replica.http.post(COMPLETIONS, json=BODY).status_code == 503

    assert replica.wait_exit() == 1


def test_death_of_the_engine_fails_an_answer_that_is_not_streamed(
    start_replica: StartReplica,
) -> None:
    replica = start_replica(step_s=0.1).wait_ready()
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(replica.url + COMPLETIONS, json=BODY | {"stream": False}))

    thread = threading.Thread(target=ask)
    thread.start()
    eventually(lambda: replica.metric("requests_running") == 1, "the request runs")
    replica.kill_engine()
    thread.join()

    assert answers[0].status_code in (500, 503)
    assert "the engine process ended" in answers[0].json()["error"]["message"]
    assert replica.wait_exit() == 1


def test_step_that_fails_ends_the_replica(start_replica: StartReplica) -> None:
    """A half-done step leaves no state that could be trusted."""
    replica = start_replica().wait_ready()

    answer = replica.http.post(COMPLETIONS, json={"prompt": "the dog", "cache_salt": FATAL})

    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "the engine process ended with status 1"
    assert replica.wait_exit() == 1
    assert "RuntimeError: the fake engine's step fails" in replica.log


def test_death_of_an_idle_engine_ends_the_replica(start_replica: StartReplica) -> None:
    replica = start_replica().wait_ready()

    replica.kill_engine()

    assert replica.wait_exit() == 1


def test_death_of_the_engine_while_loading_ends_the_replica(start_replica: StartReplica) -> None:
    replica = start_replica(start_s=20.0)
    eventually(lambda: replica.status("/health") == 200, "the replica listens")

    replica.kill_engine()

    assert replica.wait_exit() == 1


def test_engine_goes_when_the_replica_is_killed(start_replica: StartReplica) -> None:
    replica = start_replica().wait_ready()
    engine = replica.engine_pid()

    replica.process.kill()
    replica.wait_exit()

    eventually(lambda: not is_alive(engine), "the engine ends too")


def test_replica_that_is_killed_leaves_no_files(
    start_replica: StartReplica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    replica = start_replica().wait_ready()

    replica.process.kill()
    replica.wait_exit()

    assert list(folder.glob("octavo-*")) == []


def test_taken_port_is_said_in_words(start_replica: StartReplica) -> None:
    first = start_replica().wait_ready()
    second = start_replica(port=first.port)

    assert second.wait_exit() != 0
    assert f"cannot listen on 127.0.0.1:{first.port}" in second.log
    assert first.http.get("/health").status_code == 200


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
