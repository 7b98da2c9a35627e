"""Where batches come from and go to: files, or http and https URLs. Output is all or nothing."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import httpx

from octavo_protocol.errors import ConfigError

MAX_INPUT_BYTES = 200 * 2**20  # OpenAI's limit for the file of one batch
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)


def read_lines(source: str, *, max_bytes: int = MAX_INPUT_BYTES) -> list[tuple[int, bytes]]:
    """The lines of a file or URL that are not empty, with their numbers from 1.

    Raises `ConfigError`.
    """
    data = _download(source, max_bytes) if _is_url(source) else _read(Path(source), max_bytes)
    return [(i, line) for i, line in enumerate(data.split(b"\n"), start=1) if line.strip()]


@contextmanager
def writing(target: str, *, temporary_folder: Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write to. It becomes `target` when the block ends well, and else nothing does.

    temporary_folder: where it lies until then; None: beside the target, or the system's for a URL.
    Raises `ConfigError` where the target cannot be written.
    """
    folder = temporary_folder
    if folder is None and not _is_url(target):
        folder = Path(target).absolute().parent
    try:
        handle, name = tempfile.mkstemp(prefix=".batch-", suffix=".jsonl", dir=folder)
    except OSError as error:
        raise ConfigError(f"cannot write in {folder}: {error.strerror}") from error
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        _upload(path, target) if _is_url(target) else _move(path, Path(target))
    finally:
        path.unlink(missing_ok=True)


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise _too_large(str(path), max_bytes)
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _download(url: str, max_bytes: int) -> bytes:
    data = bytearray()
    try:
        with httpx.stream("GET", url, timeout=_TIMEOUT, follow_redirects=True) as response:
            if response.status_code != httpx.codes.OK:
                raise ConfigError(f"{url} answered {response.status_code}")
            for piece in response.iter_bytes():
                data += piece
                if len(data) > max_bytes:
                    raise _too_large(url, max_bytes)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(f"cannot read {url}: {error}") from error
    return bytes(data)


def _too_large(name: str, max_bytes: int) -> ConfigError:
    return ConfigError(
        f"{name} is larger than {max_bytes >> 20} MiB; split it into several batches"
    )


def _move(path: Path, target: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)  # as any new file; temporary ones are private
    try:
        with suppress(IsADirectoryError):
            os.replace(path, target)
            return
        raise ConfigError(f"cannot write {target}: it is a folder")
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}") from error


def _upload(path: Path, url: str) -> None:
    try:
        with path.open("rb") as file:
            response = httpx.put(url, content=file, timeout=_TIMEOUT)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(f"cannot write {url}: {error}") from error
    if response.is_error:
        raise ConfigError(f"cannot write {url}: it answered {response.status_code}")
