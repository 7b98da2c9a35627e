"""The loop of the engine process, with its real sockets and a core that records."""

import threading
from collections.abc import Iterable, Iterator

import msgspec
import pytest
import zmq

from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.engine.core_process import run
from octavo_runtime.engine.messages import (
    AddRequest,
    Command,
    EngineInfo,
    EngineRequest,
    Shutdown,
    StepOutputs,
)
from octavo_runtime.engine.wakeup import Wakeup

INFO = EngineInfo(
    model="m", cache_model="m", dtype="float32", block_size=16, num_blocks=1, max_model_len=16,
    max_num_seqs=4, vocab_size=8, eos_token_ids=[0], stages={},
)  # fmt: skip


class RecordingCore:
    """Has work, and time to spare until a second request has come. steps: requests by each."""

    def __init__(self) -> None:
        self.info = INFO
        self.wakeup = Wakeup()
        self.added: list[str] = []
        self.steps: list[list[str]] = []
        self.waits = threading.Event()

    def add_request(self, request: EngineRequest) -> None:
        self.added.append(request.request_id)

    def abort(self, request_ids: Iterable[str]) -> None: ...

    def has_work(self) -> bool:
        return bool(self.added) and not self.steps

    def spare_s(self) -> float:
        if len(self.added) != 1:
            return 0.0
        self.waits.set()
        return 60.0

    def step(self) -> StepOutputs:
        self.steps.append(self.added)
        return StepOutputs([])

    def shutdown(self) -> None: ...


@pytest.fixture
def sockets() -> Iterator[tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"]]:
    with zmq.Context() as context, context.socket(zmq.PAIR) as ours:
        ours.bind("inproc://engine")
        with context.socket(zmq.PAIR) as theirs:
            theirs.connect("inproc://engine")
            yield ours, theirs


def test_a_request_that_comes_while_there_is_time_is_in_the_next_step(
    sockets: tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"],
) -> None:
    ours, theirs = sockets
    core = RecordingCore()
    loop = threading.Thread(target=run, args=(theirs, core))
    loop.start()

    send(ours, AddRequest(request("first")))
    assert core.waits.wait(10)
    send(ours, AddRequest(request("second")))
    for _ in range(2):  # what the engine is, and the step
        assert ours.poll(10_000)
        ours.recv()
    send(ours, Shutdown())
    loop.join(10)

    assert not loop.is_alive()
    assert core.steps == [["first", "second"]]


def request(name: str) -> EngineRequest:
    return EngineRequest(name, [1], SamplingParams(), arrival_time=0.0)


def send(socket: "zmq.Socket[bytes]", command: Command) -> None:
    socket.send(msgspec.msgpack.encode(command))
