"""The truth about batches, in Redis.

    batch       hash: what it is, its status and counts
    :chunks     stream with one consumer group; an entry that is pending is leased to a worker, and
                may be claimed by another after `lease_s` without a renewal
    :results:n  hash: line of chunk n -> its result, until the chunk is finished
    :done       hash: finished chunk -> sizes of its files in the storage
    :lock       who plans or finalizes it

A line has a result once it is in `:results`, and only the first one counts. Chunks are finished
when their results are in the storage. So a line that has a result is never computed again, and
what Redis holds is bounded by the chunks in work.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import msgspec
import redis.asyncio

from octavo_protocol.batch_record import TRANSITION, BatchRecord, cancellation
from octavo_protocol.errors import NotFoundError, OtherRequestError, ValidationError
from octavo_protocol.keys import BATCHES_OPEN, batch_index_key, batch_key
from octavo_protocol.openai.batches import (
    BatchError,
    BatchErrors,
    BatchStatus,
    CreateBatchRequest,
    window_seconds,
)
from octavo_router.batches import scripts
from octavo_router.batches.records import Chunk, LineResult, Result, Sizes
from octavo_router.files.file_store import is_id
from octavo_router.files.paging import Page, page_of

LEASE_S = 15.0
_GROUP = "workers"
_MAX_OPEN = 100
_KEPT_S = 30 * 86400  # how long an ended batch is remembered
_chunk_decoder = msgspec.msgpack.Decoder(Chunk)
_result_decoder = msgspec.msgpack.Decoder(Result)
_sizes_decoder = msgspec.msgpack.Decoder(Sizes)
_encode = msgspec.msgpack.encode


@dataclass(frozen=True, slots=True)
class Lease:
    """A chunk that one worker has for a while. entry: its id in the stream. is_taken_over: from a
    silent worker, whose last results may still come.
    """

    batch_id: str
    entry: str
    chunk: Chunk
    is_taken_over: bool = False


class BatchStore:
    """consumer: this process' name, unlike any other's. lease_s: after which silence another worker
    takes over what it had.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        *,
        consumer: str | None = None,
        lease_s: float = LEASE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis = client
        self._clock = clock
        self.lease_s = lease_s
        self._lease_ms = int(lease_s * 1000)
        self.consumer = consumer or secrets.token_hex(8)
        self._transition = client.register_script(TRANSITION)
        self._create = client.register_script(scripts.CREATE)
        self._start = client.register_script(scripts.START)
        self._renew = client.register_script(scripts.RENEW)
        self._commit = client.register_script(scripts.COMMIT)
        self._finish = client.register_script(scripts.FINISH)
        self._hold = client.register_script(scripts.HOLD)

    # -- batches ----------------------------------------------------------------------------------

    async def create(
        self, owner: str, request: CreateBatchRequest, *, key: str | None = None
    ) -> BatchRecord:
        """key: the client's own; a second batch of one key is the first one again.

        Raises `OtherRequestError` where the key came with another request before.
        """
        fingerprint = _digest(request.model_dump_json())
        name = secrets.token_hex(16) if key is None else _digest(f"{len(owner)}:{owner}{key}")
        made = _new_batch(f"batch_{name}", owner, request, fingerprint, self._clock())
        if not await self._store_new(made):
            found = await self.get(made.id, owner=owner)
            if found.fields.get("fingerprint") != fingerprint:
                raise OtherRequestError(
                    "this Idempotency-Key was used for another batch; use a new key for a new one"
                )
            return found
        return made

    async def _store_new(self, batch: BatchRecord) -> bool:
        """False where one of its id is there already."""
        pairs = [each for pair in batch.fields.items() for each in pair]
        keys = [batch_key(batch.id), batch_index_key(batch.owner), BATCHES_OPEN]
        return bool(await self._create(keys, [batch.id, self._clock(), batch.rank, *pairs]))

    async def get(self, batch_id: str, *, owner: str | None = None) -> BatchRecord:
        """Raises `NotFoundError`, also for a batch of another owner."""
        raw = await self._redis.hgetall(batch_key(batch_id)) if is_id(batch_id) else {}
        fields = {
            name.decode(): value.decode() for name, value in cast(dict[bytes, bytes], raw).items()
        }
        if not fields or owner not in (None, fields["owner"]):
            raise NotFoundError(f"there is no batch {batch_id[:128]!r}", parameter="batch_id")
        return BatchRecord(batch_id, fields)

    async def list(self, owner: str, page: Page) -> tuple[list[BatchRecord], bool]:
        """A page, and whether more follow. Raises `NotFoundError` for an `after` that is gone."""
        found: list[BatchRecord] = []
        async for batch_id in page_of(self._redis, batch_index_key(owner), page):
            try:
                found.append(await self.get(batch_id))
            except NotFoundError:
                await self._redis.zrem(batch_index_key(owner), batch_id)
            if len(found) > page.limit:
                break
        return found[: page.limit], len(found) > page.limit

    async def open_ids(self) -> Sequence[str]:
        """Batches that need work or cleaning, the most urgent first; not all of very many."""
        members = await self._redis.zrange(BATCHES_OPEN, 0, _MAX_OPEN - 1)
        return [member.decode() for member in cast(list[bytes], members)]

    async def forget(self, batch_id: str) -> None:
        """There is no work for it any more."""
        await self._redis.zrem(BATCHES_OPEN, batch_id)

    async def cancel(self, owner: str, batch_id: str) -> BatchRecord:
        """Raises `NotFoundError`, and `ValidationError` for a batch that has ended."""
        batch = await self.get(batch_id, owner=owner)
        is_cancelled = await self._transition([batch_key(batch_id)], cancellation(self._clock()))
        if not is_cancelled and batch.status is not BatchStatus.CANCELLING:
            raise ValidationError(
                f"the batch is {batch.status}; only one that is validating or in_progress can be "
                "cancelled",
                parameter="batch_id",
            )
        return await self.get(batch_id)

    async def move(
        self, batch_id: str, to: BatchStatus, allowed: set[BatchStatus], **fields: str
    ) -> bool:
        """Moves the batch to `to`, if its status is one of `allowed`."""
        pairs = [each for pair in fields.items() for each in pair]
        arguments: list[str | int] = [
            to,
            int(self._clock()),
            len(allowed),
            *sorted(allowed),
            *pairs,
        ]
        return bool(await self._transition([batch_key(batch_id)], arguments))

    async def fail(self, batch_id: str, code: str, message: str) -> None:
        """The batch as a whole cannot be worked on."""
        errors = msgspec.json.encode(BatchErrors([BatchError(code, message)])).decode()
        await self.move(batch_id, BatchStatus.FAILED, {BatchStatus.VALIDATING}, errors=errors)

    async def tell(self, batch_id: str, details: str) -> None:
        """What the batch waits for; "" = nothing any more."""
        if await self._redis.exists(batch_key(batch_id)):
            await self._redis.hset(batch_key(batch_id), "status_details", details)

    async def close(self, batch: BatchRecord) -> None:
        """Forgets how an ended batch was worked on; the batch itself is remembered for a month."""
        names = [batch_key(batch.id, part) for part in ("chunks", "done", "lock")]
        names += [batch_key(batch.id, f"results:{n}") for n in range(batch.num_chunks)]
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(*names)
            pipe.expire(batch_key(batch.id), _KEPT_S)
            pipe.zrem(BATCHES_OPEN, batch.id)
            await pipe.execute()

    # -- chunks -----------------------------------------------------------------------------------

    async def start(self, batch_id: str, chunks: Sequence[Chunk], *, model: str) -> bool:
        """The batch is valid: `chunks` are to be worked on. False where it was started before."""
        total = sum(chunk.num_lines for chunk in chunks)
        await self._redis.hset(batch_key(batch_id), "model", model)
        arguments: list[str | int | bytes] = [int(self._clock()), _GROUP, total]
        arguments += map(_encode, chunks)
        keys = [batch_key(batch_id), batch_key(batch_id, "chunks")]
        return bool(await self._start(keys, arguments))

    async def lease(self, batch_id: str) -> Lease | None:
        """A chunk that nobody works on, or whose worker is silent; None without one."""
        key = batch_key(batch_id, "chunks")
        claimed = await self._redis.xautoclaim(
            key, _GROUP, self.consumer, self._lease_ms, "0", count=1
        )
        entries: list[Any] = claimed[1]
        is_taken_over = bool(entries)
        if not entries:
            fresh = await self._redis.xreadgroup(_GROUP, self.consumer, {key: ">"}, count=1)
            entries = _stream_entries(fresh)
        if not entries:
            return None
        entry, fields = entries[0]
        chunk = _chunk_decoder.decode(fields[b"chunk"])
        return Lease(batch_id, entry.decode(), chunk, is_taken_over)

    async def renew(self, lease: Lease) -> bool:
        """False: another worker has the chunk now."""
        keys = [batch_key(lease.batch_id, "chunks")]
        return bool(await self._renew(keys, [_GROUP, lease.entry, self.consumer]))

    async def results(self, batch_id: str, number: int) -> dict[int, Result]:
        """Results of chunk `number` by line; none of a finished one."""
        raw = await self._redis.hgetall(batch_key(batch_id, f"results:{number}"))
        return {
            int(line): _result_decoder.decode(value)
            for line, value in cast(dict[bytes, bytes], raw).items()
            if line.isdigit()
        }

    async def has_result(self, batch_id: str, number: int, line: int) -> bool:
        """Whether a line of chunk `number` needs no answer any more."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hexists(batch_key(batch_id, f"results:{number}"), str(line))
            pipe.hexists(batch_key(batch_id, "done"), str(number))
            return any(await pipe.execute())

    async def commit(self, results: Sequence[LineResult]) -> None:
        """Keeps the results of lines that have none, in one round trip."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for each in results:
                counts = {"failed" if each.result.is_error else "completed": 1}
                counts |= asdict(each.tokens)
                pairs = [part for name, count in counts.items() if count for part in (name, count)]
                names = ("", "done", f"results:{each.number}")
                keys = [batch_key(each.batch_id, name) for name in names]
                arguments = [each.number, each.place, _encode(each.result), *pairs]
                await self._commit(keys, arguments, client=pipe)
            await pipe.execute()

    async def note_try(self, batch_id: str, number: int, line: int) -> int:
        """Counts a try of a line that failed; returns how many there were, over all workers."""
        key = batch_key(batch_id, f"results:{number}")
        return int(await self._redis.hincrby(key, f"tries:{line}", 1))

    async def finish(self, batch_id: str, number: int, sizes: Sizes, *, entry: str = "") -> None:
        """The results of chunk `number` are in the storage."""
        parts = ("", "done", f"results:{number}", "chunks")
        keys = [batch_key(batch_id, part) for part in parts]
        await self._finish(keys, [number, _encode(sizes), _GROUP, entry])

    async def unfinished(self, batch_id: str) -> Sequence[Lease]:
        """The chunks that are not finished, whoever works on them."""
        entries = await self._redis.xrange(batch_key(batch_id, "chunks"))
        return [
            Lease(batch_id, entry.decode(), _chunk_decoder.decode(fields[b"chunk"]))
            for entry, fields in cast(list[tuple[bytes, dict[bytes, bytes]]], entries)
        ]

    async def finished(self, batch_id: str) -> dict[int, Sizes]:
        """The finished chunks."""
        raw = cast(dict[bytes, bytes], await self._redis.hgetall(batch_key(batch_id, "done")))
        return {int(number): _sizes_decoder.decode(value) for number, value in raw.items()}

    async def num_finished(self, batch_id: str) -> int:
        return int(await self._redis.hlen(batch_key(batch_id, "done")))

    # -- the lock ---------------------------------------------------------------------------------

    async def hold(self, batch_id: str) -> bool:
        """Takes or renews the right to plan or finalize, for `lease_s`. False: another has it."""
        keys = [batch_key(batch_id, "lock")]
        return bool(await self._hold(keys, [self.consumer, self._lease_ms]))

    async def let_go(self, batch_id: str) -> None:
        await self._hold([batch_key(batch_id, "lock")], [self.consumer, 0])


def _new_batch(
    batch_id: str, owner: str, request: CreateBatchRequest, fingerprint: str, now: float
) -> BatchRecord:
    lifetime = request.output_expires_after
    fields = {
        "owner": owner,
        "status": BatchStatus.VALIDATING.value,
        "endpoint": request.endpoint,
        "input_file_id": request.input_file_id,
        "completion_window": request.completion_window,
        "priority": str(request.priority),
        "metadata": msgspec.json.encode(request.metadata).decode(),
        "output_lifetime_s": "" if lifetime is None else str(lifetime.seconds),
        "created_at": str(int(now)),
        "expires_at": str(int(now) + window_seconds(request.completion_window)),
        "fingerprint": fingerprint,
    }
    return BatchRecord(batch_id, fields)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _stream_entries(answer: Any) -> list[Any]:
    """Entries of the one stream that was read, in either of redis-py's shapes."""
    if not answer:
        return []
    if isinstance(answer, dict):
        (entries,) = answer.values()
        return list(entries[0]) if entries and isinstance(entries[0], list) else list(entries)
    return list(answer[0][1])
