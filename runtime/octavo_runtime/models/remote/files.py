"""A file somewhere else, and which files a model needs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from re import fullmatch
from urllib.parse import urlsplit

from octavo_protocol.errors import ConfigError

MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model", "LICENSE*")
GGUF_FILES = ("*.gguf",)
# Weights as pickles: reading them runs the code in them, so they are left out unless asked for.
PICKLE_FILES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class TransferInterrupted(Exception):
    """The connection broke or the server is busy: trying again may help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """name: path below the source, or the name of the source itself. version: differs when the
    content does (ETag, digest). num_bytes: None where the server does not say. sha256: checked
    where it is known. read: the content from a byte on, in chunks; it raises `TransferInterrupted`
    when that may go better later, and `ConfigError` when the content is no longer `version`.
    """

    name: str
    version: str
    num_bytes: int | None
    read: Callable[[int], Iterator[bytes]]
    sha256: str | None = None


def is_wanted(path: str, *, allow_pickle: bool = False) -> bool:
    """Whether a model may need the file of that name."""
    name = path.rpartition("/")[2]
    patterns = (*MODEL_FILES, *GGUF_FILES, *(PICKLE_FILES if allow_pickle else ()))
    return any(fnmatchcase(name, pattern) for pattern in patterns) and not name.startswith(".")


def is_module_folder(name: str) -> bool:
    """Whether a model's folder of that name is sentence-transformers' (1_Pooling, 2_Dense)."""
    return fullmatch(r"[0-9]+_[A-Za-z]+", name) is not None


def is_pickle(path: str) -> bool:
    """Whether the file of that name is taken for pickled weights."""
    return any(fnmatchcase(path.rpartition("/")[2], pattern) for pattern in PICKLE_FILES)


def shown(source: str) -> str:
    """`source` as messages may show it: a query may hold a signature, a user part a password."""
    parts = urlsplit(source)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def refuse_user_part(source: str, variables: str) -> None:
    """Raises `ConfigError` if `source` holds a user name; variables: where it belongs."""
    if "@" in urlsplit(source).netloc:
        raise ConfigError(
            f"{shown(source)}: leave user and password out of the source; put them into the "
            f"environment as {variables}"
        )
