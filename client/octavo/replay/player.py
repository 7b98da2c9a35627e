"""Sends the requests of a trace when their time has come."""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence

from octavo.bench.online import StreamTimes, Target, open_session, stream
from octavo.bench.workload import BenchRequest
from octavo.replay.prompts import PromptMaker
from octavo.sim.trace import TraceRequest


async def play(
    target: Target,
    requests: Sequence[TraceRequest],
    prompts: PromptMaker,
    *,
    max_concurrency: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[float, list[StreamTimes]]:
    """(seconds in all, times of each request).

    max_concurrency: requests that are open at once; later ones wait, and their times begin when
    they are sent. Prompts are made one at a time: a trace of hours takes no memory for them.
    """
    limit = asyncio.Semaphore(max_concurrency or max(1, len(requests)))
    results = [StreamTimes() for _ in requests]

    async with open_session(target) as session, asyncio.TaskGroup() as group:
        started = time.perf_counter()

        async def one(number: int, request: TraceRequest) -> None:
            result = results[number]
            prompt = prompts.prompt(request, number)
            result.start = time.perf_counter() - started
            try:
                asked = BenchRequest(prompt, request.num_output_tokens)
                await stream(session, _of_session(target, request), asked, result)
            finally:
                limit.release()
            result.text = ""
            if progress is not None:
                progress(1)

        for number, request in enumerate(requests):
            await asyncio.sleep(started + request.arrival_s - time.perf_counter())
            await limit.acquire()
            group.create_task(one(number, request))
    return time.perf_counter() - started, results


def _of_session(target: Target, request: TraceRequest) -> Target:
    """The request's body names its session, for policies that go by it."""
    if request.session is None:
        return target
    return dataclasses.replace(target, body={**target.body, "user": request.session})
