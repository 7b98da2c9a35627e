"""What programs read of a pull: how far it has come, and its last words."""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from octavo_protocol.errors import ConfigError, OctavoError

_LINE_EVERY_S = 1.0
# Kubernetes keeps so much of a termination message.
_MAX_TERMINATION_BYTES = 4096

Report = Callable[[str, int, int | None], None]


class PullProgress:
    """Passes progress on to `report`, and appends it to `progress_file` at most once a second.

    Each line is a JSON object: `time` (seconds since 1970), `stage`, `done` and `total` in bytes
    (`total` is null where it is not known); the last one has `result` (`complete` or `failed`) and
    `message`. The message goes to `termination_log` too, if that file is there.
    """

    def __init__(
        self,
        progress_file: Path | None,
        termination_log: Path,
        report: Report,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._file = progress_file
        self._termination_log = termination_log
        self._report = report
        self._clock = clock
        self._stage = ""
        self._written_at = 0.0

    def __enter__(self) -> "PullProgress":
        if self._file is not None:
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._file.open("a").close()
            except OSError as error:
                raise ConfigError(f"cannot write {self._file}: {error.strerror}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            told = error.message if isinstance(error, OctavoError) else repr(error)
            self._end("failed", told)

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        self._report(stage, done, total)
        now = self._clock()
        if stage == self._stage and done != total and now - self._written_at < _LINE_EVERY_S:
            return
        self._stage, self._written_at = stage, now
        self._append({"time": now, "stage": stage, "done": done, "total": total})

    def succeeded(self, message: str) -> None:
        """The model is there."""
        self._end("complete", message)

    def _end(self, result: str, message: str) -> None:
        self._append({"time": self._clock(), "result": result, "message": message})
        with contextlib.suppress(OSError):
            if self._termination_log.exists():
                self._termination_log.write_bytes(message.encode()[:_MAX_TERMINATION_BYTES])

    def _append(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        # Being told is an extra: a pull does not fail for it half-way.
        with contextlib.suppress(OSError), self._file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
