"""Tokenizers of the replicas, fetched from them; those used last are kept."""

import asyncio
import logging
import time
from collections import OrderedDict

import msgspec

from octavo_protocol.bounded_memo import BoundedMemo
from octavo_protocol.records import ReplicaRecord
from octavo_protocol.tokenizer import Tokenizer, TokenizerBundle
from octavo_router.upstream import UpstreamClient

logger = logging.getLogger(__name__)

_MAX_KEPT = 32
_RETRY_S = 2.0
_TIMEOUT_S = 10.0
_MAX_WAIT_S = 1.0
_decoder = msgspec.json.Decoder(TokenizerBundle)


class TokenizerCache:
    """Tokenizers by their id. Without one (it cannot be had now) routing goes by load alone.

    memo: what all of them together keep of the texts that they tokenized.
    """

    def __init__(self, client: UpstreamClient, memo: BoundedMemo[bytes]) -> None:
        self._client = client
        self._memo = memo
        self._kept: OrderedDict[str, Tokenizer] = OrderedDict()
        self._failed_at: dict[str, float] = {}
        self._fetches: dict[str, tuple[asyncio.Task[None], float]] = {}

    async def get(self, record: ReplicaRecord) -> Tokenizer | None:
        """The tokenizer that the replica uses; None when it has none to give now.

        Requests wait for the first second of a fetch only; it goes on for those that follow.
        """
        if not record.tokenizer_id:
            return None
        kept = self._kept.get(record.tokenizer_id)
        if kept is not None:
            self._kept.move_to_end(record.tokenizer_id)
            return kept
        if record.tokenizer_id not in self._fetches:
            task = asyncio.create_task(self._fetch(record))
            task.add_done_callback(lambda _: self._fetches.pop(record.tokenizer_id))
            self._fetches[record.tokenizer_id] = (task, time.monotonic())
        fetch, started_at = self._fetches[record.tokenizer_id]
        left_s = started_at + _MAX_WAIT_S - time.monotonic()
        if left_s > 0:
            await asyncio.wait({fetch}, timeout=left_s)
        return self._kept.get(record.tokenizer_id)

    async def close(self) -> None:
        """Ends fetches that are under way."""
        fetches = [fetch for fetch, _ in self._fetches.values()]
        for fetch in fetches:
            fetch.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)

    async def _fetch(self, record: ReplicaRecord) -> None:
        if time.monotonic() - self._failed_at.get(record.tokenizer_id, -_RETRY_S) < _RETRY_S:
            return
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                with await self._client.send("GET", record.url, "/octavo/tokenizer") as answer:
                    if answer.status != 200:
                        raise OSError(f"status {answer.status}")
                    bundle = _decoder.decode(await answer.read())
            tokenizer = await asyncio.to_thread(Tokenizer, bundle, self._memo)
        except Exception as error:  # noqa: BLE001  # the tokenizers library raises bare Exception
            logger.warning("no tokenizer from %s: %s", record.replica_id, error)
            self._note_failure(record.tokenizer_id)
            return
        self._kept[record.tokenizer_id] = tokenizer
        if len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)

    def _note_failure(self, tokenizer_id: str) -> None:
        now = time.monotonic()
        recent = {name: at for name, at in self._failed_at.items() if now - at < _RETRY_S}
        self._failed_at = {**recent, tokenizer_id: now}
