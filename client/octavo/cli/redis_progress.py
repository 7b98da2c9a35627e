"""How far a deployment's download has come, told to the operator through Redis."""

import time
from collections.abc import Callable

import redis
import redis.backoff
import redis.exceptions
import redis.retry

from octavo.cli.pull_progress import Report
from octavo_protocol.errors import ConfigError
from octavo_protocol.keys import DOWNLOAD_TTL_S, Keys
from octavo_protocol.records import DownloadRecord, encode

_EVERY_S = 2.0
_AWAY_S = 30.0
_TIMEOUT_S = 1.0


class RedisProgress:
    """Passes progress on to `report`, and tells it in Redis every two seconds.

    Being told is an extra: a download does not fail without Redis, and hardly waits for it.
    Raises `ConfigError` for a URL that cannot be one.
    """

    def __init__(
        self,
        url: str,
        keys: Keys,
        folder: str,
        report: Report,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            self._client = redis.Redis.from_url(
                url,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
                retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
            )
        except ValueError as error:  # its text may repeat parts of the URL, such as the password
            raise ConfigError(
                "the Redis URL cannot be used; write redis://host:port/0 or unix:///path"
            ) from error
        self._key = keys.download
        self._folder = folder
        self._report = report
        self._clock = clock
        self._next_at = clock()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        self._report(stage, done, total)
        if self._clock() < self._next_at:
            return
        record = encode(DownloadRecord(self._folder, stage, done, total))
        try:
            self._client.set(self._key, record, ex=DOWNLOAD_TTL_S)
            self._next_at = self._clock() + _EVERY_S
        except (redis.exceptions.RedisError, OSError):
            self._next_at = self._clock() + _AWAY_S
