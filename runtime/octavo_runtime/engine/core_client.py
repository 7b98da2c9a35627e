"""The API side's handle on the engine process: starts it, talks to it, notices its end."""

import asyncio
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.core_process import encode_config
from octavo_runtime.engine.messages import Command, Report, Shutdown

_STOP_TIMEOUT_S = 10.0


class EngineProcess:
    """One engine process and its socket. Made inside a running event loop.

    ended: set when the process is gone, for whatever reason.
    """

    def __init__(self, config: EngineConfig, core_factory: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="octavo-"))  # mode 0700: nobody else connects
        self._has_folder = True
        address = f"ipc://{self._folder / 'engine'}"
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._socket.bind(address)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "octavo_runtime.engine.core_process", address, core_factory],
            stdin=subprocess.PIPE,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(encode_config(config))
        self.process.stdin.close()
        self.ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._watch, args=(loop,), name="engine-watch", daemon=True).start()

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def send(self, command: Command) -> None:
        """Queues a command; never blocks. Does nothing once the socket is closed."""
        if not self._socket.closed:
            self._socket.send(self._encoder.encode(command))

    async def receive(self) -> Report:
        """The next report. Waits forever if the process has ended: watch `ended` beside it."""
        raw = await self._socket.recv()
        if self._has_folder:  # both ends are connected: nothing else would remove it after a kill
            self._remove_folder()
        return self._decoder.decode(raw)

    async def last_reports(self) -> list[Report]:
        """What a process that has ended sent before, and nobody received."""
        reports = []
        while await self._socket.poll(timeout=0):
            reports.append(await self.receive())
        return reports

    def kill(self) -> None:
        """Ends the process at once; `ended` follows. Does nothing when it has ended."""
        self.process.kill()

    async def stop(self) -> None:
        """Ends the process, by force if it does not end by itself. `close` comes after it."""
        self.send(Shutdown())
        try:
            await asyncio.wait_for(self.ended.wait(), _STOP_TIMEOUT_S)
        except TimeoutError:
            self.kill()
            await self.ended.wait()

    def close(self) -> None:
        """Closes the socket of a process that has ended."""
        self._context.destroy(linger=0)
        self._remove_folder()

    def _remove_folder(self) -> None:
        self._has_folder = False
        shutil.rmtree(self._folder, ignore_errors=True)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self.process.wait()
        if not loop.is_closed():
            loop.call_soon_threadsafe(self.ended.set)
