"""Models packed as .tar, .tar.gz or .zip: files that a model needs are taken out, and no other."""

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.cache import require_space
from octavo_runtime.models.remote.files import is_wanted
from octavo_runtime.models.remote.layout import Tree

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
_CHUNK_BYTES = 1 << 20


def is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVES)


def unpack(archive: Path, tree: Tree, *, allow_pickle: bool = False) -> None:
    """Puts the wanted files of `archive` into `tree`.

    Raises `ConfigError` for what is not a whole archive, for paths that lead out of it, and for
    links and encrypted files among the wanted ones.
    """
    with _explained(archive):
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, tree, allow_pickle)
        else:
            _unpack_tar(archive, tree, allow_pickle)


def _unpack_tar(archive: Path, tree: Tree, allow_pickle: bool) -> None:
    with tarfile.open(archive, "r:*") as packed:
        for member in packed:
            target = tree.place(member.name) if _is_file(member) else None
            if target is None or not is_wanted(member.name, allow_pickle=allow_pickle):
                continue
            content = packed.extractfile(member) if member.isfile() else None
            if content is None:
                raise ConfigError(
                    f"{member.name} in the archive is a link; pack the files themselves "
                    "(`tar --dereference`)"
                )
            _write(content, target, member.size)


def _is_file(member: tarfile.TarInfo) -> bool:
    return member.isfile() or member.issym() or member.islnk()


def _unpack_zip(archive: Path, tree: Tree, allow_pickle: bool) -> None:
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            if member.is_dir():
                continue
            target = tree.place(member.filename)
            if not is_wanted(member.filename, allow_pickle=allow_pickle):
                continue
            if member.flag_bits & 1:
                raise ConfigError(f"{member.filename} in the archive is encrypted")
            with packed.open(member) as content:
                _write(content, target, member.file_size)


def _write(content: IO[bytes], target: Path, num_bytes: int) -> None:
    require_space(target.parent, num_bytes)
    with target.open("wb") as out:
        shutil.copyfileobj(content, out, _CHUNK_BYTES)


@contextmanager
def _explained(archive: Path) -> Iterator[None]:
    try:
        yield
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
    ) as error:
        raise ConfigError(f"the archive cannot be read: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise ConfigError(f"the archive cannot be read: {error}") from error
