"""Tokenizers of the deployment's replicas, fetched from them and kept."""

import asyncio
import logging
import time
from collections import OrderedDict

import aiohttp
import msgspec

from octavo_protocol.records import ReplicaRecord
from octavo_protocol.tokenizer import Tokenizer, TokenizerBundle

logger = logging.getLogger(__name__)

_MAX_KEPT = 8
_RETRY_S = 2.0
_TIMEOUT = aiohttp.ClientTimeout(total=10)
_decoder = msgspec.json.Decoder(TokenizerBundle)


class TokenizerCache:
    """Tokenizers by their id. Without one (it cannot be had now) routing goes by load alone."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._kept: OrderedDict[str, Tokenizer] = OrderedDict()
        self._failed_at: dict[str, float] = {}
        self._lock = asyncio.Lock()

    async def get(self, record: ReplicaRecord) -> Tokenizer | None:
        """The tokenizer that the replica uses; None when it has none to give."""
        if not record.tokenizer_id:
            return None
        kept = self._kept.get(record.tokenizer_id)
        if kept is not None:
            return kept
        async with self._lock:
            if record.tokenizer_id not in self._kept:
                await self._fetch(record)
        return self._kept.get(record.tokenizer_id)

    async def _fetch(self, record: ReplicaRecord) -> None:
        if time.monotonic() - self._failed_at.get(record.tokenizer_id, -_RETRY_S) < _RETRY_S:
            return
        try:
            async with self._session.get(
                f"{record.url}/octavo/tokenizer", timeout=_TIMEOUT
            ) as response:
                response.raise_for_status()
                bundle = _decoder.decode(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as error:
            logger.warning("no tokenizer from %s: %s", record.replica_id, error)
            self._failed_at[record.tokenizer_id] = time.monotonic()
            return
        tokenizer = await asyncio.to_thread(Tokenizer, bundle)
        self._kept[record.tokenizer_id] = tokenizer
        if len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
