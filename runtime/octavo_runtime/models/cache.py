"""The folder where prepared models are kept, and how a model enters it: whole or not at all.

$OCTAVO_CACHE, else $XDG_CACHE_HOME/octavo, else ~/.cache/octavo
├── models/<key>/            one complete model in Hugging Face layout
├── models/.partial-<key>/   being built; renamed to the line above when it is complete
├── locks/<key>.lock         held while <key> is built; a lock dies with its process
└── run/                     logs and sockets of `octavo up`
"""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from octavo_protocol.errors import ConfigError

_LOCK_POLL_S = 0.2
# Of an `OSError` that says that the disk, or one's share of it, is full.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Progress(Protocol):
    """Told how far a stage has come, in bytes. `total` is None where it is not known."""

    def __call__(self, stage: str, done: int, total: int | None) -> None: ...


def silent(stage: str, done: int, total: int | None) -> None:
    """A `Progress` that shows nothing."""


def cache_root() -> Path:
    """Octavo's cache folder; it need not exist yet."""
    if explicit := os.environ.get("OCTAVO_CACHE"):
        return Path(explicit).expanduser().absolute()
    if vllms := os.environ.get("VLLM_CACHE_ROOT"):
        return Path(vllms).expanduser().absolute() / "octavo"
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser().absolute() / "octavo"
    return Path.home() / ".cache" / "octavo"


def build_once(
    root: Path,
    key: str,
    build: Callable[[Path], None],
    *,
    needed_bytes: int,
    is_resumable: bool = False,
    progress: Progress = silent,
) -> Path:
    """The folder of `key`, built by `build(empty folder)` if it is not there yet.

    Of several processes that ask at once, one builds and the others wait. After a failure, and
    after a kill at any moment, the next call starts from nothing; is_resumable: from what the last
    one left, except where the disk was full. needed_bytes: disk space that the build takes at its
    peak, checked before it starts; 0 where the build checks it itself.
    """
    final = root / "models" / key
    if final.is_dir():
        return final
    with explained(root, needed_bytes):
        partial = root / "models" / f".partial-{key}"
        (root / "locks").mkdir(parents=True, exist_ok=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        with locked(root / "locks" / f"{key}.lock", progress):
            if final.is_dir():
                return final
            require_space(root, needed_bytes)
            with staged(partial, is_resumable=is_resumable):
                build(partial)
                sync(partial)
                partial.rename(final)
    return final


@contextmanager
def staged(folder: Path, *, is_resumable: bool) -> Iterator[None]:
    """`folder` to build in: empty, or with what is resumable in it. Afterwards it is gone; what is
    resumable stays after a failure, unless its room is needed.
    """
    if not is_resumable:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    is_kept = False
    try:
        yield
    except BaseException as error:
        is_kept = is_resumable and not (isinstance(error, OSError) and error.errno in NO_SPACE)
        raise
    finally:
        if not is_kept:
            shutil.rmtree(folder, ignore_errors=True)


def require_space(folder: Path, num_bytes: int) -> None:
    """Raises `OSError` (ENOSPC) unless `num_bytes` more fit on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OSError(errno.ENOSPC, f"{num_bytes / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")


@contextmanager
def locked(path: Path, progress: Progress) -> Iterator[None]:
    """Waits until no other process is in here with `path`; a lock dies with its process."""
    with path.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress("waiting for another process that prepares this model", 0, None)
                time.sleep(_LOCK_POLL_S)
        yield  # closing the file releases the lock


@contextmanager
def explained(root: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Turns what the file system refuses into a `ConfigError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            size = f"takes {needed_bytes / 1e6:.0f} MB" if needed_bytes else "needs more room"
            raise ConfigError(
                f"the disk is full: preparing this model {size} in {root} ({error.strerror}). "
                "Make room, or choose a folder on a larger disk (OCTAVO_CACHE, or --to)."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ConfigError(
                f"cannot write to the cache folder {root}: {error.strerror}. Set OCTAVO_CACHE (or "
                "--to) to a folder that you may write to."
            ) from error
        raise


def sync(folder: Path) -> None:
    """Returns when every file below `folder` is on the disk."""
    # A rename may reach the disk before the data does; a power cut must not leave a hollow model.
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
