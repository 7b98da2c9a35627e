"""Works on batches: plans new ones, has lines answered, writes results. Any number of workers share
them; each may die at any point, and another goes on from what Redis and the storage hold.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from octavo_protocol.batch_lines import custom_id_of, error_line, parse_line
from octavo_protocol.batch_record import BatchRecord
from octavo_protocol.errors import NotFoundError, ValidationError
from octavo_protocol.openai.batches import BatchStatus
from octavo_protocol.tasks import stop_tasks
from octavo_router.batches import line as line_work
from octavo_router.batches.commits import Commits
from octavo_router.batches.dispatch import Dispatcher, prefix_of
from octavo_router.batches.patience import REDIS_ERRORS, patiently
from octavo_router.batches.planning import BatchPlan, lines_of
from octavo_router.batches.records import Chunk, LineResult, Result, TokenCounts
from octavo_router.batches.results import INPUT_FILE_GONE, LockLostError, ResultFiles
from octavo_router.batches.store import BatchStore, Lease
from octavo_router.files.file_store import FileStore
from octavo_router.files.storage import StorageError

logger = logging.getLogger(__name__)

_ROUND_S = 0.2
_SWEEP_S = 60.0
_PAUSE_S = 2.0
MAX_CHUNKS = 16  # leased at once
# Beyond these, so that lines that cannot go on keep nobody else's from their turn: for each owner
# and model, and of all.
LANE_CHUNKS, _MOST_CHUNKS = 2, 48
_RETRY_S = 0.25  # doubled after each try that failed
# The worker that had the chunk before has got the line's result meanwhile.
_ANSWERED: line_work.Outcome = (Result(False, b""), TokenCounts())
_UNFINISHED = {
    "batch_expired": "the batch's completion window ended before this request was answered",
    "batch_cancelled": "the batch was cancelled before this request was answered",
    INPUT_FILE_GONE: "the batch's input file was deleted before this request was answered",
}


class _InputGoneError(Exception):
    """The batch's input file was deleted, or has expired."""


class BatchWorker:
    """post: has one request answered (`line.Post`), for an owner.

    room: lines that may be under way for a model, given how many are.
    """

    def __init__(
        self,
        store: BatchStore,
        files: FileStore,
        *,
        post: Callable[[str], line_work.Post],
        room: Callable[[str, int], int],
        max_lines: int,
        max_line_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._files = files
        self._results = ResultFiles(store, files)
        self._commits = Commits(store)
        self._dispatcher = Dispatcher(room)
        self._post = post
        self._max_lines = max_lines
        self._max_line_bytes = max_line_bytes
        self._clock = clock
        self._tasks: dict[tuple[str, int | str], asyncio.Task[None]] = {}
        self._chunks: Counter[tuple[str, str]] = Counter()  # under way, by owner and model
        self._waiting: set[str] = set()  # batches whose details were told
        self._swept_at = float("-inf")

    @property
    def num_waiting(self) -> int:
        """Lines that wait for a replica with room."""
        return self._dispatcher.num_waiting

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                try:
                    await self.round()
                except REDIS_ERRORS as error:
                    logger.warning("Redis is away, batches wait: %s", error)
                await asyncio.sleep(_ROUND_S)
        finally:
            await stop_tasks(list(self._tasks.values()))
            await self._commits.close()

    async def round(self) -> None:
        """Looks once at every open batch and starts what is to be done. Raises Redis' errors."""
        self._dispatcher.fill_all()
        for batch_id in await self._store.open_ids():
            try:
                await self._look_at(await self._store.get(batch_id))
            except NotFoundError:
                logger.warning("the batch %s is gone from Redis", batch_id)
                await self._store.forget(batch_id)
        if time.monotonic() - self._swept_at > _SWEEP_S:
            self._swept_at = time.monotonic()
            await self._guarded("", self._files.delete_expired())

    async def _look_at(self, batch: BatchRecord) -> None:
        match batch.status:
            case BatchStatus.VALIDATING:
                self._begin(batch.id, "plan", self._locked(batch, self._plan))
            case BatchStatus.IN_PROGRESS:
                await self._progress(batch)
            case BatchStatus.FINALIZING | BatchStatus.CANCELLING:
                self._stop_chunks(batch.id)
                self._begin(batch.id, "finalize", self._locked(batch, self._finalize))
            case _:
                self._begin(batch.id, "clean", self._results.clean(batch))

    async def _progress(self, batch: BatchRecord) -> None:
        if self._clock() >= batch.expires_at:
            await self._move_to_finalizing(batch, "batch_expired")
        elif await self._store.num_finished(batch.id) == batch.num_chunks:
            await self._move_to_finalizing(batch, "")
        else:
            while self._may_lease(batch):
                lease = await self._store.lease(batch.id)
                if lease is None or (batch.id, lease.chunk.number) in self._tasks:
                    return
                self._begin_chunk(batch, lease)

    async def _move_to_finalizing(self, batch: BatchRecord, code: str) -> None:
        await self._store.move(
            batch.id, BatchStatus.FINALIZING, {BatchStatus.IN_PROGRESS}, unfinished_code=code
        )

    # -- planning ---------------------------------------------------------------------------------

    async def _plan(self, batch: BatchRecord) -> None:
        plan = BatchPlan(
            batch.endpoint, max_lines=self._max_lines, max_line_bytes=self._max_line_bytes
        )
        try:
            await self._files.get(batch.owner, batch.input_file_id)
            async for piece in self._files.content(batch.input_file_id):
                await asyncio.to_thread(plan.feed, piece)
                if not await self._store.hold(batch.id):
                    return
            await asyncio.to_thread(plan.finish)
        except (ValidationError, NotFoundError) as error:
            await self._store.fail(batch.id, error.code or "invalid_input_file", error.message)
            return
        await self._store.start(batch.id, plan.chunks, model=plan.model)

    # -- lines ------------------------------------------------------------------------------------

    async def _work(self, batch: BatchRecord, lease: Lease) -> None:
        """Has the lines of a chunk answered that have no result yet."""
        chunk = lease.chunk
        try:
            data = await self._input(batch, chunk)
        except _InputGoneError:
            await self._move_to_finalizing(batch, INPUT_FILE_GONE)
            return
        await self._refuse(batch, chunk, data)
        known = await self._store.results(batch.id, chunk.number)
        lines = [(place, line) for place, line in lines_of(chunk, data) if place not in known]
        renewing = asyncio.create_task(self._renew(lease))
        try:
            async with asyncio.TaskGroup() as group:
                work = [group.create_task(self._answer(batch, lease, *each)) for each in lines]
                renewing.add_done_callback(lambda _: [each.cancel() for each in work])
        finally:
            await stop_tasks([renewing])
        results = await self._store.results(batch.id, chunk.number)
        if len(results) == chunk.num_lines:
            await self._results.finish_chunk(batch.id, chunk.number, results, entry=lease.entry)

    async def _input(self, batch: BatchRecord, chunk: Chunk) -> bytes:
        """The chunk's lines. Raises `_InputGoneError`, and `StorageError` where they may come."""
        try:
            return await self._files.storage.read(batch.input_file_id, chunk.start, chunk.num_bytes)
        except StorageError:
            try:
                await self._files.get(batch.owner, batch.input_file_id)
            except NotFoundError:
                raise _InputGoneError from None
            raise

    async def _renew(self, lease: Lease) -> None:
        """Ends when another worker has the chunk."""
        while True:
            await asyncio.sleep(self._store.lease_s / 4)
            try:
                if not await self._store.renew(lease):
                    return
            except REDIS_ERRORS:
                continue  # whether the lease is lost shows when Redis is back

    async def _answer(self, batch: BatchRecord, lease: Lease, place: int, line: bytes) -> None:
        """Asks for an answer, as often as it takes."""
        request = parse_line(line, (batch.endpoint,))
        where = (batch.id, lease.chunk.number, place)

        async def ask() -> line_work.Outcome | None:
            if lease.is_taken_over and await patiently(lambda: self._store.has_result(*where)):
                return _ANSWERED
            return await line_work.attempt(
                request,
                "-".join(map(str, where)),
                post=self._post(batch.owner),
                count_try=lambda: patiently(lambda: self._store.note_try(*where)),
            )

        prefix, wait_s = prefix_of(request.body), _RETRY_S
        outcome = None
        while outcome is None:
            outcome = await self._dispatcher.run(
                request.model, batch.rank, prefix, ask, owner=batch.owner
            )
            if outcome is None:
                await asyncio.sleep(wait_s)
                wait_s *= 2
        if outcome is not _ANSWERED:
            await self._commits.add(LineResult(*where, *outcome))

    async def _refuse(self, batch: BatchRecord, chunk: Chunk, data: bytes) -> None:
        """Results of the lines that are no requests."""
        if not chunk.refusals:
            return
        lines = [line for line in data.split(b"\n") if line.strip()]
        results = []
        for refusal in chunk.refusals:
            custom_id = custom_id_of(lines[refusal.line])
            result = Result(True, error_line(custom_id, refusal.code, refusal.message))
            results.append(LineResult(batch.id, chunk.number, refusal.line, result))
        await patiently(lambda: self._store.commit(results))

    # -- the end ----------------------------------------------------------------------------------

    async def _finalize(self, batch: BatchRecord) -> None:
        """Every line that has no result gets one that says why, then the files are published."""
        try:
            for lease in await self._store.unfinished(batch.id):
                await self._results.keep_lock(batch)
                await self._give_up(batch, lease)
            await self._results.publish(batch)
        except LockLostError:
            return

    async def _give_up(self, batch: BatchRecord, lease: Lease) -> None:
        chunk = lease.chunk
        try:
            data = await self._input(batch, chunk)
            await self._refuse(batch, chunk, data)
        except _InputGoneError:
            data = b""  # nobody knows its lines any more: those that have results keep them
        known = await self._store.results(batch.id, chunk.number)
        code = batch.unfinished_code
        given_up = []
        for place, line in lines_of(chunk, data):
            if place not in known:
                result = Result(True, error_line(custom_id_of(line), code, _UNFINISHED[code]))
                given_up.append(LineResult(batch.id, chunk.number, place, result))
        await patiently(lambda: self._store.commit(given_up))
        results = await self._store.results(batch.id, chunk.number)
        await self._results.finish_chunk(batch.id, chunk.number, results, entry=lease.entry)

    # -- tasks ------------------------------------------------------------------------------------

    def _may_lease(self, batch: BatchRecord) -> bool:
        num_chunks = self._chunks.total()
        has_few = self._chunks[_lane(batch)] < LANE_CHUNKS
        return num_chunks < MAX_CHUNKS or (has_few and num_chunks < _MOST_CHUNKS)

    def _begin_chunk(self, batch: BatchRecord, lease: Lease) -> None:
        lane = _lane(batch)
        self._begin(batch.id, lease.chunk.number, self._work(batch, lease))
        self._chunks[lane] += 1

        def end(_: object) -> None:
            self._chunks[lane] -= 1
            if not self._chunks[lane]:
                del self._chunks[lane]

        self._tasks[batch.id, lease.chunk.number].add_done_callback(end)

    def _begin(self, batch_id: str, part: int | str, work: Coroutine[Any, Any, None]) -> None:
        """Starts `work`, unless it is under way."""
        if (batch_id, part) in self._tasks:
            work.close()
            return
        task = asyncio.create_task(self._guarded(batch_id, work))
        self._tasks[batch_id, part] = task
        task.add_done_callback(lambda _: self._tasks.pop((batch_id, part), None))

    async def _guarded(self, batch_id: str, work: Coroutine[Any, Any, None]) -> None:
        """Failures end the work; after a pause a later round begins it again."""
        details = ""
        try:
            await work
        except* StorageError as errors:
            details = _first(errors)
        except* REDIS_ERRORS as errors:
            details = f"Redis: {_first(errors)}"
        except* Exception as errors:
            details = "an internal error"
            logger.error("work on %s failed", batch_id or "expired files", exc_info=errors)
        if details:
            logger.warning("%s waits: %s", batch_id or "cleaning", details)
        if batch_id:
            await self._tell(batch_id, details)
        if details:
            await asyncio.sleep(_PAUSE_S)

    async def _tell(self, batch_id: str, details: str) -> None:
        """In the batch's `status_details`: what it waits for."""
        if not details and batch_id not in self._waiting:
            return
        with suppress(*REDIS_ERRORS):
            await self._store.tell(batch_id, details)
            (self._waiting.add if details else self._waiting.discard)(batch_id)

    async def _locked(
        self, batch: BatchRecord, work: Callable[[BatchRecord], Coroutine[Any, Any, None]]
    ) -> None:
        if await self._store.hold(batch.id):
            await work(batch)
            await self._store.let_go(batch.id)

    def _stop_chunks(self, batch_id: str) -> None:
        for (other, part), task in self._tasks.items():
            if other == batch_id and isinstance(part, int):
                task.cancel()


def _lane(batch: BatchRecord) -> tuple[str, str]:
    return batch.owner, batch.fields.get("model", "")


def _first(errors: BaseExceptionGroup[BaseException]) -> str:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else str(error)
