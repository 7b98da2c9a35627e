"""Files in S3 and Google Cloud Storage: read as streams, written in parts, there when complete.

Credentials and addresses come from the environment, as for models (docs/models.md).
"""

import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from octavo_protocol.errors import ConfigError

if TYPE_CHECKING:
    from obstore.store import GCSStore, S3Store

SCHEMES = ("s3://", "gs://")
# Together they bound the memory of a transfer; with 10,000 parts a file can have 80 GB.
_PART_BYTES, _MAX_PARTS_OPEN = 8 * 2**20, 2


@dataclass(frozen=True, slots=True)
class BucketFile:
    """One object. Methods raise `ConfigError`."""

    url: str
    store: "S3Store | GCSStore"
    path: str

    @classmethod
    def at(cls, url: str) -> "BucketFile":
        """Raises `ConfigError` for a URL without bucket or path, and without obstore."""
        from octavo_runtime.models.remote.object_store import open_store

        parts = urlsplit(url)
        path = unquote(parts.path).strip("/")
        if not (parts.netloc and path):
            raise ConfigError(f"{url}: write {parts.scheme}://bucket/path")
        return cls(url, open_store(parts.scheme, parts.netloc), path)

    def pieces(self) -> Iterator[bytes]:
        import obstore

        from octavo_runtime.models.remote.object_store import explained

        with explained(self.url):
            for piece in obstore.get(self.store, self.path).stream():
                yield bytes(piece)

    def write(self, content: Iterable[bytes]) -> None:
        """Raises also what `content` raises; then there is no new object."""
        import obstore

        from octavo_runtime.models.remote.object_store import explained

        with explained(self.url, "written"):
            obstore.put(
                self.store,
                self.path,
                iter(content),
                chunk_size=_PART_BYTES,
                max_concurrency=_MAX_PARTS_OPEN,
            )

    def check_writable(self) -> None:
        probe = BucketFile(self.url, self.store, f"{self.path}.{secrets.token_hex(4)}.part")
        probe.write([b"octavo"])
        with suppress(ConfigError):  # who may write need not be allowed to delete
            probe.remove()

    def remove(self) -> None:
        """No error where it is not there."""
        import obstore

        from octavo_runtime.models.remote.object_store import explained

        with explained(self.url, "written"), suppress(FileNotFoundError):
            obstore.head(self.store, self.path)
            obstore.delete(self.store, self.path)
