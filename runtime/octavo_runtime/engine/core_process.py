"""The engine process: commands in, steps, reports out.

Started by `core_client` as `python -m octavo_runtime.engine.core_process ADDRESS FACTORY`, with the
configuration as JSON on standard input. It ends when told to, when its parent ends, or with exit
status 1 when a step fails: a half-done step leaves no state that could be trusted.
"""

import ctypes
import importlib
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import zmq

from octavo_protocol.errors import ConfigError, OctavoError
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.failures import kind_of
from octavo_runtime.engine.heap import FrozenHeap
from octavo_runtime.engine.messages import (
    AbortRequests,
    AddPoolingRequest,
    AddRequest,
    Command,
    Control,
    EngineInfo,
    EngineRequest,
    PoolingRequest,
    PoolingResult,
    Report,
    SequenceOutput,
    Shutdown,
    StartFailed,
    StepOutputs,
)
from octavo_runtime.engine.waiting_calls import WaitingCalls
from octavo_runtime.engine.wakeup import Wakeup

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_LOOK_S = 0.0005  # between two looks whether the device still needs no new step
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)


class Core(Protocol):
    """What the process runs: `EngineCore`, `PoolingCore`, or a fake in tests.

    It gets the requests of its kind alone: the API side asks `info`.
    """

    info: EngineInfo

    @property
    def wakeup(self) -> Wakeup: ...

    def add_request(self, request: Any) -> None: ...
    def abort(self, request_ids: Iterable[str]) -> None: ...
    def step(self) -> StepOutputs: ...
    def has_work(self) -> bool: ...
    def spare_s(self) -> float: ...
    def shutdown(self) -> None: ...


def encode_config(config: EngineConfig) -> bytes:
    return msgspec.json.encode(config, enc_hook=str)


def decode_config(raw: bytes) -> EngineConfig:
    return msgspec.json.decode(raw, type=EngineConfig, dec_hook=_to_path)


def run(socket: "zmq.Socket[bytes]", core: Core) -> None:
    """Serves until `Shutdown`. Takes commands between steps; waits for them without work, and
    while the device needs no new step.
    """
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(core.wakeup.fd, zmq.POLLIN)
    waiting = WaitingCalls(lambda result: _send(socket, result))
    _send(socket, core.info)
    while True:
        if not core.has_work():
            poller.poll()
        while True:
            core.wakeup.clear()
            if not _handle_all(socket, core, waiting):
                return
            if not (spare_s := core.spare_s()):
                break
            # Not the poller: it counts in milliseconds. All was received, so news make the
            # descriptor readable.
            select.select([socket.FD, core.wakeup.fd], (), (), min(spare_s, _LOOK_S))
        _send(socket, core.step())
        waiting.look(core)


def _handle_all(socket: "zmq.Socket[bytes]", core: Core, waiting: WaitingCalls) -> bool:
    """Carries out the commands that are there; False when one was the last."""
    try:
        while True:
            if not _handle(socket, core, _decoder.decode(socket.recv(zmq.NOBLOCK)), waiting):
                return False
    except zmq.Again:
        return True


def _handle(
    socket: "zmq.Socket[bytes]", core: Core, command: Command, waiting: WaitingCalls
) -> bool:
    """Carries out one command; False when it was the last."""
    match command:
        case AddRequest(request):
            _add(socket, core, request)
        case AddPoolingRequest(pooling):
            _add(socket, core, pooling)
        case AbortRequests(request_ids):
            core.abort(request_ids)
        case Control():
            waiting.call(core, command)
        case Shutdown():
            return False
    return True


def _add(socket: "zmq.Socket[bytes]", core: Core, request: EngineRequest | PoolingRequest) -> None:
    """Queues a request, or answers that it was not accepted."""
    try:
        core.add_request(request)
    except Exception as error:
        logger.exception("request %s was not accepted", request.request_id)
        cause = error.message if isinstance(error, OctavoError) else ""
        kind = kind_of(error)
        if isinstance(request, PoolingRequest):
            refused = PoolingResult(
                request.request_id, finish_reason="error", error=cause, error_kind=kind
            )
            _send(socket, StepOutputs(pooled=[refused]))
        else:
            failed = SequenceOutput(
                request.request_id, [], finish_reason="error", error=cause, error_kind=kind
            )
            _send(socket, StepOutputs([failed]))


def main(arguments: list[str]) -> int:
    """Exit status: 0 stopped as told, 1 failed (the cause is logged, and reported at start)."""
    address, factory_name = arguments
    _die_with_parent()
    # Ctrl-C and many supervisors signal every process of the group; the API process decides what it
    # means: with the engine gone, the requests that it would drain are lost.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    config = decode_config(sys.stdin.buffer.read())
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.connect(address)
    try:
        try:
            core = _factory(factory_name)(config)
        except ConfigError as error:
            _send(socket, StartFailed(error.message, True))
            return 1
        except Exception as error:
            logger.exception("the engine did not start")
            _send(socket, StartFailed(f"{type(error).__name__}: {error}", False))
            return 1
        FrozenHeap().hold()
        try:
            run(socket, core)
        except Exception:
            logger.exception("a step failed; the engine stops")
            return 1
        core.shutdown()
        return 0
    finally:
        context.destroy(linger=1000)


def _factory(name: str) -> Callable[[EngineConfig], Core]:
    module, _, attribute = name.partition(":")
    factory: Callable[[EngineConfig], Core] = getattr(importlib.import_module(module), attribute)
    return factory


def _send(socket: "zmq.Socket[bytes]", report: Report) -> None:
    socket.send(_encoder.encode(report))


def _to_path(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"no decoder for {kind}")


def _die_with_parent() -> None:
    """Linux: SIGKILL for this process when its parent's main thread ends, however that happens."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call
            os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
