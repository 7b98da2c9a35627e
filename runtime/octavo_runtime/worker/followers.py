"""Rank 0's handle on the processes of the other ranks: starts them, talks to them, sees them end.

A process that ends for whatever reason ends the group: what the others wait for never comes.
"""

import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from octavo_protocol.errors import ConfigError, GenerationError, OctavoError
from octavo_runtime.config import ResolvedConfig
from octavo_runtime.parallel.group import ALONE, Group
from octavo_runtime.worker.rank_messages import Answer, Done, Failed, Message

_STOP_TIMEOUT_S = 10.0
_END_TIMEOUT_S = 2.0  # from an exchange that breaks off to the end of the process that did it


class _Follower:
    """One process. Its standard input ends with this process, and with that the process itself."""

    def __init__(self, rank: int, config: ResolvedConfig, max_model_len: int, store: Path) -> None:
        self.rank = rank
        ours, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "octavo_runtime.worker.follower", str(fd)],
                stdin=subprocess.PIPE,
                pass_fds=[fd],
            )
        self.connection = Connection(ours.detach())
        self.connection.send_bytes(pickle.dumps((rank, config, max_model_len, store)))

    def stop(self, timeout_s: float) -> None:
        self.connection.close()
        assert self.process.stdin is not None
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdin.close()


class _Processes:
    """The processes, and what follows from their end. Closed at the latest when this one ends.

    group: whose exchanges end when a process does.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="octavo-"))  # mode 0700: nobody else connects
        self.followers: list[_Follower] = []
        self.group: Group = ALONE
        self.has_lost = threading.Event()
        self._is_closing = False

    def add(self, follower: _Follower) -> None:
        self.followers.append(follower)
        name = f"rank-{follower.rank}-watch"
        threading.Thread(target=self._watch, args=(follower,), name=name, daemon=True).start()

    def close(self) -> None:
        """Ends the processes, by force if they do not end by themselves. Again: nothing."""
        self._is_closing = True
        for follower in self.followers:
            follower.stop(_STOP_TIMEOUT_S)
        self.followers.clear()
        self.group.abort()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _watch(self, follower: _Follower) -> None:
        follower.process.wait()
        if not self._is_closing:
            self.has_lost.set()
            self.group.abort()


class Followers:
    """All ranks but 0. Each answers when it is about to join, and when its model is loaded.

    store: where the ranks find each other.
    """

    def __init__(self, config: ResolvedConfig, max_model_len: int) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
        self._processes = _Processes()
        self.close = weakref.finalize(self, self._processes.close)
        self.store = self._processes.folder / "ranks"
        for rank in range(1, config.tensor_parallel_size):
            self._processes.add(_Follower(rank, config, max_model_len, self.store))

    def end_exchanges_of(self, group: Group) -> None:
        """Once a process ends: this one would wait for it for ever."""
        self._processes.group = group

    def send(self, message: Message) -> None:
        """Raises OSError where a process has ended."""
        raw = self._encoder.encode(message)
        for follower in self._processes.followers:
            follower.connection.send_bytes(raw)

    def answers(self) -> list[int | None]:
        """One of each rank, waited for. Raises what a rank has failed with."""
        return [self._answer(follower) for follower in self._processes.followers]

    def check(self) -> None:
        """Raises why the group is at its end, if it is: what it has computed since is nothing."""
        if self._processes.has_lost.is_set():
            raise self._failure()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside, all ranks do the same. One that fails ends all, and is what is raised."""
        try:
            yield
        except Exception as error:
            has_lost = self._processes.has_lost
            is_own = isinstance(error, OctavoError) or not has_lost.wait(_END_TIMEOUT_S)
            has_lost.set()
            failure = self._failure()
            for follower in self._processes.followers:
                follower.process.kill()
            self.close()
            if is_own:
                raise
            raise failure from error

    def _failure(self) -> OctavoError:
        for follower in self._processes.followers:
            try:
                while follower.connection.poll():
                    self._answer(follower)
            except OctavoError as error:
                return error
        return GenerationError("a rank of the tensor-parallel group has ended")

    def _answer(self, follower: _Follower) -> int | None:
        try:
            answer = self._decoder.decode(follower.connection.recv_bytes())
        except (EOFError, OSError) as error:
            status = follower.process.wait()
            raise GenerationError(
                f"the process of rank {follower.rank} ended with status {status}"
            ) from error
        match answer:
            case Failed(message, is_config):
                kind = ConfigError if is_config else GenerationError
                raise kind(f"rank {follower.rank}: {message}")
            case Done(value):
                return value
