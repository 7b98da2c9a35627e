"""Models in S3 and Google Cloud Storage, and in what speaks S3's language.

S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), or the role of the pod's
service account; AWS_REGION; AWS_ENDPOINT_URL for other servers. Google: a service account's key as
JSON in GOOGLE_APPLICATION_CREDENTIALS_JSON. Without credentials, buckets are read as public ones.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.remote.archive import is_archive
from octavo_runtime.models.remote.files import (
    RemoteFile,
    TransferInterrupted,
    is_module_folder,
    is_wanted,
    refuse_user_part,
)

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta
    from obstore.store import ClientConfig, GCSConfig, GCSStore, RetryConfig, S3Store

# Of one request; each has a time limit, so a whole shard could be too much.
_WINDOW_BYTES = 64 << 20
_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS_JSON",
}
# Their presence means that the pod's service account has a role.
_AWS_ROLES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_REFUSALS = ("403 Forbidden", "401 Unauthorized", "AccessDenied")


def objects(source: str, *, allow_pickle: bool) -> list[RemoteFile]:
    """The wanted objects right below `source` and in the folders of sentence-transformers' modules
    there, or the one object that it names.

    Raises `ConfigError` when the bucket cannot be read or there is nothing.
    """
    parts = urlsplit(source)
    refuse_user_part(source, _VARIABLES[parts.scheme])
    path = unquote(parts.path).strip("/")
    if not parts.netloc:
        raise ConfigError(f"{source}: write {parts.scheme}://bucket/path")
    reader = _Reader(open_store(parts.scheme, parts.netloc), source)
    if is_archive(path) or path.endswith(".gguf"):
        return [reader.file(reader.head(path), below=path.rpartition("/")[0])]
    found, folders = reader.list(path)
    for folder in filter(is_module_folder, folders):
        found += reader.list(f"{path}/{folder}".lstrip("/"))[0]
    wanted = [each for each in found if is_wanted(each["path"], allow_pickle=allow_pickle)]
    if not wanted and folders:
        raise ConfigError(
            f"{source} has no model in it, only folders: {', '.join(folders[:10])}. Name one."
        )
    return [reader.file(each, below=path) for each in wanted]


class _Reader:
    """One bucket; obstore's errors become ours."""

    def __init__(self, store: "S3Store | GCSStore", source: str) -> None:
        self._store = store
        self._source = source

    def head(self, path: str) -> "ObjectMeta":
        import obstore

        with explained(self._source):
            return obstore.head(self._store, path)

    def list(self, path: str) -> "tuple[list[ObjectMeta], list[str]]":
        """Objects and folders right below `path`."""
        import obstore

        with explained(self._source):
            found = obstore.list_with_delimiter(self._store, path or None)
        folders = [prefix.rpartition("/")[2] for prefix in found["common_prefixes"]]
        return list(found["objects"]), folders

    def file(self, found: "ObjectMeta", below: str) -> RemoteFile:
        return RemoteFile(
            name=found["path"].removeprefix(below).lstrip("/"),
            version=found["e_tag"] or str(found["last_modified"]),
            num_bytes=found["size"],
            read=partial(self._read, found),
        )

    def _read(self, found: "ObjectMeta", start: int) -> Iterator[bytes]:
        import obstore
        from obstore.exceptions import BaseError, PreconditionError

        path, size = found["path"], found["size"]
        try:
            while start < size:
                end = min(size, start + _WINDOW_BYTES)
                options: GetOptions = {"if_match": found["e_tag"], "range": (start, end)}
                for chunk in obstore.get(self._store, path, options=options).stream():
                    yield bytes(chunk)
                start = end
        except (PreconditionError, FileNotFoundError) as error:
            raise ConfigError(f"{path} changed while it was fetched; fetch it again") from error
        except BaseError as error:
            if _is_refusal(error):
                raise _refused(self._source) from error
            raise TransferInterrupted(_first_line(error)) from error


def open_store(scheme: str, bucket: str) -> "S3Store | GCSStore":
    """scheme: `s3` or `gs`. Raises `ConfigError` without the package for it."""
    try:
        from obstore.store import GCSStore, S3Store
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{scheme}:// needs the package obstore: pip install 'octavo[sources]'"
        ) from error
    client: ClientConfig = {"allow_http": True, "timeout": "120s", "connect_timeout": "30s"}
    retry: RetryConfig = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}
    if scheme == "s3":
        is_signed = any(os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", *_AWS_ROLES))
        return S3Store(
            bucket, skip_signature=not is_signed, client_options=client, retry_config=retry
        )
    key = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS_JSON")
    config: GCSConfig = {"service_account_key": key} if key else {"skip_signature": True}
    return GCSStore(bucket, config=config, client_options=client, retry_config=retry)


@contextmanager
def explained(source: str, verb: str = "read") -> Iterator[None]:
    """Turns what obstore says into a `ConfigError` that says what to do."""
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError as error:
        raise ConfigError(f"{source} does not exist") from error
    except BaseError as error:
        if "NoSuchBucket" in str(error):
            raise ConfigError(f"{source}: there is no such bucket") from error
        if _is_refusal(error):
            raise _refused(source) from error
        raise ConfigError(f"{source} cannot be {verb}: {_first_line(error)}") from error


def _is_refusal(error: Exception) -> bool:
    return any(word in str(error) for word in _REFUSALS)


def _refused(source: str) -> ConfigError:
    return ConfigError(
        f"{source}: the server refuses access. Put credentials that may use it into the "
        f"environment as {_VARIABLES[urlsplit(source).scheme]}."
    )


def _first_line(error: Exception) -> str:
    # What follows is Rust's view of the error.
    return str(error).partition("\n")[0].strip()
