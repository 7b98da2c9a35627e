"""An `EngineProcess` without a process: a test reads what is sent and says what is reported."""

import asyncio
from types import SimpleNamespace
from typing import Any

from octavo_runtime.engine.messages import (
    AddRequest,
    Command,
    Control,
    ControlResult,
    EngineRequest,
    Report,
    SequenceOutput,
    StepOutputs,
)


class FakeEngineProcess:
    """sent: commands in their order. reports: what `AsyncLLM` is told next."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.process = SimpleNamespace(returncode=0)
        self.sent: list[Command] = []
        self.reports: asyncio.Queue[Report] = asyncio.Queue()
        self._num_taken = 0

    @property
    def is_alive(self) -> bool:
        return not self.ended.is_set()

    def send(self, command: Command) -> None:
        self.sent.append(command)

    async def receive(self) -> Report:
        return await self.reports.get()

    async def last_reports(self) -> list[Report]:
        return []

    def kill(self) -> None:
        self.ended.set()

    async def stop(self) -> None:
        self.ended.set()

    def close(self) -> None:
        pass

    async def next_call(self, method: str) -> Control:
        """The next command that is such a call; those before it count as taken."""
        while True:
            command = await self._next()
            if isinstance(command, Control) and command.method == method:
                return command

    async def next_request(self) -> EngineRequest:
        while True:
            command = await self._next()
            if isinstance(command, AddRequest):
                return command.request

    def answer(self, call: Control, value: Any) -> None:
        self.reports.put_nowait(ControlResult(call.call_id, value))

    def give(self, *outputs: SequenceOutput) -> None:
        """One step's outputs."""
        self.reports.put_nowait(StepOutputs(list(outputs)))

    async def _next(self) -> Command:
        async with asyncio.timeout(10):
            while self._num_taken == len(self.sent):
                await asyncio.sleep(0.001)
        self._num_taken += 1
        return self.sent[self._num_taken - 1]
