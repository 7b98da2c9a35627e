"""Files arrive side by side, are continued where they broke off, and count only when complete.

    .<name>.<version>.part    as far as it has come; continued by the next call
    .<name>.<version>         complete, and checked where a checksum is known

The version is in the name, so that halves of two different files are never put together.
"""

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Lock

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.cache import Progress, require_space
from octavo_runtime.models.remote.files import RemoteFile, TransferInterrupted

_NUM_AT_ONCE = 4
# Failures in a row, without a byte between them, before the server is given up.
_MAX_FAILURES = 5
_FIRST_PAUSE_S = 0.5
_CHUNK_BYTES = 1 << 20

Sleep = Callable[[float], None]


def download(
    files: Sequence[RemoteFile],
    folder: Path,
    stage: str,
    progress: Progress,
    *,
    sleep: Sleep = time.sleep,
) -> list[Path]:
    """Fetches every file into `folder`; where each one is, in order.

    Raises `ConfigError` when a server does not answer for long or a checksum is wrong; what has
    arrived by then stays.
    """
    targets = [folder / _file_name(file) for file in files]
    _remove_others(folder, targets)
    counter = _Counter(stage, _total(files), progress)
    require_space(folder, _missing_bytes(files, targets))
    with ThreadPoolExecutor(_NUM_AT_ONCE, thread_name_prefix="download") as pool:
        started = [
            pool.submit(_fetch, file, target, counter, sleep)
            for file, target in zip(files, targets, strict=True)
        ]
        try:
            wait(started, return_when=FIRST_EXCEPTION)
        finally:
            counter.stopped.set()
            pool.shutdown(cancel_futures=True)
    failed = [future.exception() for future in started if not future.cancelled()]
    for error in failed:
        if error is not None and not isinstance(error, _StoppedError):
            raise error
    return targets


class _StoppedError(Exception):
    """Another file failed."""


class _Counter:
    """Bytes of all files together."""

    def __init__(self, stage: str, total: int | None, progress: Progress) -> None:
        self.stopped = Event()
        self._report = partial(progress, stage)
        self._total = total
        self._done = 0
        self._lock = Lock()
        self.add(0)

    def add(self, num_bytes: int) -> None:
        with self._lock:
            self._done += num_bytes
            self._report(self._done, self._total)


@dataclass(frozen=True, slots=True)
class _Attempts:
    """Pauses that grow with each failure in a row, until it is one too many."""

    file: RemoteFile
    sleep: Sleep

    def pause(self, num_failures: int, error: TransferInterrupted) -> None:
        if num_failures > _MAX_FAILURES:
            raise ConfigError(
                f"{self.file.name} could not be fetched, {num_failures} attempts in a row failed: "
                f"{error}. What has arrived is kept: the same command goes on from there."
            ) from error
        self.sleep(_FIRST_PAUSE_S * 2 ** (num_failures - 1))


def _fetch(file: RemoteFile, target: Path, counter: _Counter, sleep: Sleep) -> None:
    if target.exists():
        counter.add(target.stat().st_size)
        return
    part = target.with_name(f"{target.name}.part")
    part.touch()
    counter.add(part.stat().st_size)
    attempts, num_failures = _Attempts(file, sleep), 0
    while True:
        begin = part.stat().st_size
        try:
            _append(file, part, counter)
            break
        except TransferInterrupted as error:
            has_moved = part.stat().st_size > begin
            num_failures = 1 if has_moved else num_failures + 1
            attempts.pause(num_failures, error)
    _check(file, part)
    part.rename(target)


def _append(file: RemoteFile, part: Path, counter: _Counter) -> None:
    """Adds to `part` what is missing at its end."""
    position = part.stat().st_size
    if position == file.num_bytes:
        return
    with part.open("ab") as out:
        for chunk in file.read(position):
            if counter.stopped.is_set():
                raise _StoppedError
            out.write(chunk)
            position += len(chunk)
            counter.add(len(chunk))
    if file.num_bytes is not None and position < file.num_bytes:
        raise TransferInterrupted(f"it ended after {position} of {file.num_bytes} bytes")


def _check(file: RemoteFile, part: Path) -> None:
    found = part.stat().st_size
    if file.num_bytes is not None and found != file.num_bytes:
        part.unlink()
        raise ConfigError(f"{file.name} has {found} bytes, expected were {file.num_bytes}")
    if file.sha256 is not None and (digest := _sha256(part)) != file.sha256:
        part.unlink()
        raise ConfigError(f"{file.name} has the SHA-256 {digest}, expected was {file.sha256}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _file_name(file: RemoteFile) -> str:
    """A hidden name without folders; different for different files and versions."""
    identity = hashlib.sha256(f"{file.name}\n{file.version}".encode()).hexdigest()[:16]
    return f".{re.sub(r'[^A-Za-z0-9._-]', '_', file.name)[-100:]}.{identity}"


def _remove_others(folder: Path, targets: Sequence[Path]) -> None:
    """Deletes what earlier calls left of other versions."""
    kept = {name for target in targets for name in (target.name, f"{target.name}.part")}
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()


def _total(files: Sequence[RemoteFile]) -> int | None:
    sizes = [file.num_bytes for file in files if file.num_bytes is not None]
    return sum(sizes) if len(sizes) == len(files) else None


def _missing_bytes(files: Sequence[RemoteFile], targets: Sequence[Path]) -> int:
    """Bytes still to come, as far as sizes are known."""
    missing = 0
    for file, target in zip(files, targets, strict=True):
        found = (path for path in (target, target.with_name(f"{target.name}.part")))
        present = sum(path.stat().st_size for path in found if path.exists())
        missing += max(0, (file.num_bytes or 0) - present)
    return missing
