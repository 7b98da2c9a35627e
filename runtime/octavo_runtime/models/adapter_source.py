"""From what a user writes to the local folder of a LoRA adapter in PEFT's layout.

    ./folder  /folder  ~/folder  folder  file:///folder    used where it is
    org/name  hf://org/name                                the Hugging Face hub
    s3:// gs:// oci:// http:// https://                    fetched once, kept in the cache

As for models (`source.py`), whose sources these are. The engine checks what is in the folder.
"""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from octavo_protocol.errors import AdapterNotFoundError, ConfigError
from octavo_runtime.models.cache import Progress
from octavo_runtime.models.remote import SCHEMES
from octavo_runtime.models.remote.files import shown
from octavo_runtime.models.source import resolve_model

CONFIG_FILE = "adapter_config.json"
_LOCAL_PREFIXES = ("/", "./", "../", "~")


def resolve_adapter(
    source: str,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """The adapter's folder, fetched if it is not here yet.

    revision: branch, tag or commit; of hub repositories only. Raises `AdapterNotFoundError` that
    says where was looked.
    """
    local = _local_folder(source)
    if local is None:
        folder = _fetched(source, revision, cache_dir, progress)
    else:
        folder = local.absolute()
        if revision is not None:
            raise _not_found(source, f"folders have no revisions; leave {revision!r} out")
        if not folder.is_dir():
            raise _not_found(source, "there is no such folder")
    if not (folder / CONFIG_FILE).is_file():
        raise _not_found(source, f"it has no {CONFIG_FILE}: expected an adapter as PEFT saves it")
    return folder


def shown_source(source: str) -> str:
    """`source` as it may be shown: without what a URL may hold of credentials."""
    return shown(source) if source.partition("://")[0] in SCHEMES else source


def _local_folder(source: str) -> Path | None:
    scheme, separator, _ = source.partition("://")
    if separator and scheme == "file":
        parts = urlsplit(source)
        if parts.netloc not in ("", "localhost"):
            raise _not_found(source, "write file:///absolute/path, with three slashes")
        return Path(unquote(parts.path))
    if separator:
        return None
    path = Path(source).expanduser()
    return path if source.startswith(_LOCAL_PREFIXES) or path.is_dir() else None


def _fetched(
    source: str, revision: str | None, cache_dir: Path | None, progress: Progress | None
) -> Path:
    name = source if "://" in source else f"hf://{source}"
    try:
        return resolve_model(name, revision=revision, cache_dir=cache_dir, progress=progress)
    except ConfigError as error:
        raise _not_found(source, error.message) from error


def _not_found(source: str, why: str) -> AdapterNotFoundError:
    return AdapterNotFoundError(
        f"there is no LoRA adapter at {shown_source(source)}: {why}", parameter="lora_path"
    )
