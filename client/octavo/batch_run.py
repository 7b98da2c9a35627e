"""One run of `octavo batch run`: from a file of requests at a URL to a file of answers at another.

The batch is the platform's, and goes on without us. A run has a key, which is part of the names of
its file and its batch there: a second run of that key finds what the first has left, at whatever
point that was killed, and goes on from it. Nothing is submitted twice.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from octavo import batch_storage
from octavo.batch_client import BatchClient, described, has_ended
from octavo.batch_input import PieceReader, asked_of
from octavo_protocol.batch_runs import KEY_NOTE, RunSummary
from octavo_protocol.errors import ClientError, ConfigError, ServerError
from octavo_protocol.openai.batches import Batch

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# The platform's copies; it remembers a batch for as long.
_KEPT_S = 30 * 86400
_POLL_S, _LONGEST_POLL_S = 1.0, 10.0
# How long after its end a batch is waited for while the platform is away.
_PATIENCE_S = 3600
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """What to run. errors: where failed requests go. model: asked by every line; None: each line
    names its own. key: of the run. notes: further metadata of the batch.
    """

    input: str
    output: str
    errors: str
    key: str
    endpoint: str = "/v1/chat/completions"
    model: str | None = None
    window: str = "24h"
    priority: int = 0
    notes: dict[str, str] = field(default_factory=dict)


class BatchRun:
    """progress: called with the batch whenever it was looked at. Raises `ConfigError` for a key
    that cannot be part of names.
    """

    def __init__(
        self,
        client: BatchClient,
        spec: RunSpec,
        *,
        progress: Callable[[Batch], None],
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        if not _KEY.fullmatch(spec.key):
            raise ConfigError(
                "a key has 1 to 128 letters, digits and ._- and begins with a letter or digit, "
                f"not {spec.key[:140]!r}"
            )
        self._client = client
        self._spec = spec
        self._progress = progress
        self._sleep = sleep
        self._now = now

    def run(self) -> RunSummary:
        """Submits the batch or finds it, waits for its end and writes its files.

        Raises `OctavoError`: `ConfigError` where a URL cannot be read or written, `ClientError`
        where the platform refuses, `ServerError` where it is away at the start or for very long.
        """
        batch = self._ended(self._find_batch() or self._submit())
        errors = self._write(batch, batch.error_file_id, self._spec.errors)
        output = self._write(batch, batch.output_file_id, self._spec.output)
        counts = batch.request_counts
        return RunSummary(
            batch_id=batch.id,
            status=batch.status,
            total=counts.total,
            completed=counts.completed,
            failed=counts.failed,
            output=output,
            errors=errors,
            message=described(batch),
        )

    def _find_batch(self) -> Batch | None:
        """Of this key. The platform shows each tenant its own batches only."""
        for batch in self._client.batches():
            if (batch.metadata or {}).get(KEY_NOTE) == self._spec.key:
                return batch
        return None

    def _submit(self) -> Batch:
        spec = self._spec
        for url in (spec.output, spec.errors):
            batch_storage.check_writable(url)
        file_id = self._find_file() or self._upload()
        try:
            return self._client.create(
                file_id,
                endpoint=spec.endpoint,
                window=spec.window,
                metadata={KEY_NOTE: spec.key, **spec.notes},
                key=spec.key,
                priority=spec.priority,
                output_expires_after={"anchor": "created_at", "seconds": _KEPT_S},
            )
        except ClientError:
            # Another run of this key may have submitted a file of its own at the same time.
            if (batch := self._find_batch()) is None:
                raise
            return batch

    def _find_file(self) -> str | None:
        """A file is told of when it is stored as a whole: one that is found is complete."""
        files = self._client.input_files()
        return next((each.id for each in files if each.filename == self._filename), None)

    def _upload(self) -> str:
        pieces = batch_storage.pieces(self._spec.input)
        if self._spec.model is not None:
            pieces = asked_of(self._spec.model, pieces)
        stream = PieceReader(pieces)
        return self._client.upload_stream(self._filename, stream, lifetime_s=_KEPT_S).id

    @property
    def _filename(self) -> str:
        return f"{self._spec.key}.jsonl"

    def _ended(self, batch: Batch) -> Batch:
        """The batch when it has ended; it goes on while the platform cannot be asked."""
        pause_s = _POLL_S
        self._progress(batch)
        while not has_ended(batch):
            self._sleep(pause_s)
            pause_s = min(1.2 * pause_s, _LONGEST_POLL_S)
            batch = self._patiently(batch, partial(self._client.get, batch.id))
            self._progress(batch)
        return batch

    def _write(self, batch: Batch, file_id: str | None, url: str) -> str | None:
        """The URL, where there was something to write; else no file of an earlier run stays."""
        if file_id is None:
            batch_storage.remove(url)
            return None

        def write() -> str:
            batch_storage.write(url, self._client.content(file_id))
            return url

        return self._patiently(batch, write)

    def _patiently(self, batch: Batch, ask: Callable[[], Result]) -> Result:
        pauses = _pauses()
        while True:
            try:
                return ask()
            except ServerError as error:
                if self._now() > batch.expires_at + _PATIENCE_S:
                    raise
                logger.warning("%s; tried again", error.message)
            self._sleep(next(pauses))


def _pauses() -> Iterator[float]:
    pause_s = _POLL_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, _LONGEST_POLL_S)
