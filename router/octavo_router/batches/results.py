"""What batches write: the results of a chunk, and in the end the two files of the batch."""

from collections.abc import Mapping

import msgspec

from octavo_protocol.batch_record import BatchRecord
from octavo_protocol.openai.batches import BatchError, BatchErrors, BatchStatus
from octavo_router.batches.records import Result, Sizes
from octavo_router.batches.store import BatchStore
from octavo_router.files.file_store import FileStore

INPUT_FILE_GONE = "input_file_gone"


class LockLostError(Exception):
    """Another worker finalizes the batch now."""


class ResultFiles:
    """Writes to the storage. All of it may be done again: names and contents stay the same."""

    def __init__(self, store: BatchStore, files: FileStore) -> None:
        self._store = store
        self._files = files

    async def finish_chunk(
        self, batch_id: str, number: int, results: Mapping[int, Result], *, entry: str = ""
    ) -> None:
        """Moves the results of all lines of a chunk from Redis to the storage. They are those that
        Redis holds, so that two workers that think they have the chunk write the same.
        """
        ordered = [results[line] for line in sorted(results)]
        output = b"".join(each.line for each in ordered if not each.is_error)
        errors = b"".join(each.line for each in ordered if each.is_error)
        for kind, data in (("output", output), ("errors", errors)):
            if data:
                async with self._files.storage.writer(_part(batch_id, number, kind)) as writer:
                    await writer.write(data)
        sizes = Sizes(len(output), len(errors))
        await self._store.finish(batch_id, number, sizes, entry=entry)

    async def publish(self, batch: BatchRecord) -> None:
        """Joins the chunks, all finished, in their order, to the batch's files and ends the batch.

        Raises `LockLostError`; nothing is published then.
        """
        finished = await self._store.finished(batch.id)
        fields: dict[str, str] = {}
        if batch.unfinished_code == INPUT_FILE_GONE:
            error = BatchError(INPUT_FILE_GONE, "the input file was deleted before the batch's end")
            fields["errors"] = msgspec.json.encode(BatchErrors([error])).decode()
        for kind, name in (("output", "output_file_id"), ("errors", "error_file_id")):
            numbers = [n for n in sorted(finished) if getattr(finished[n], kind)]
            if numbers:
                fields[name] = await self._join(batch, kind, numbers)
        await self._store.move(
            batch.id,
            _END[batch.unfinished_code],
            {BatchStatus.FINALIZING, BatchStatus.CANCELLING},
            **fields,
        )

    async def keep_lock(self, batch: BatchRecord) -> None:
        """Renews the right to finalize. Raises `LockLostError`."""
        if not await self._store.hold(batch.id):
            raise LockLostError

    async def clean(self, batch: BatchRecord) -> None:
        """Deletes what an ended batch no longer needs."""
        finished = await self._store.finished(batch.id)
        parts = [_part(batch.id, n, kind) for n in finished for kind in ("output", "errors")]
        await self._files.storage.delete(*parts)
        await self._store.close(batch)

    async def _join(self, batch: BatchRecord, kind: str, numbers: list[int]) -> str:
        file_id = f"file-{batch.id.removeprefix('batch_')}-{kind}"
        async with self._files.storage.writer(file_id) as writer:
            for number in numbers:
                await self.keep_lock(batch)
                await writer.write(await self._files.storage.read(_part(batch.id, number, kind)))
        await self._files.add(
            batch.owner,
            file_id,
            filename=f"{batch.id}_{kind}.jsonl",
            purpose="batch_output",
            num_bytes=writer.num_bytes,
            lifetime_s=batch.output_lifetime_s,
        )
        return file_id


_END = {
    "": BatchStatus.COMPLETED,
    "batch_expired": BatchStatus.EXPIRED,
    "batch_cancelled": BatchStatus.CANCELLED,
    INPUT_FILE_GONE: BatchStatus.FAILED,
}


def _part(batch_id: str, number: int, kind: str) -> str:
    return f"{batch_id}/{number:06d}.{kind}"
