"""Models from the Hugging Face hub: what of a repository is fetched, and errors that teach.

Files land in huggingface_hub's own cache (`HF_HOME`), which other tools share. Private and gated
models need a token in HF_TOKEN. Only safetensors weights are fetched: pickled ones can run code.
"""

import re
from pathlib import Path

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.cache import NO_SPACE
from octavo_runtime.models.remote.files import MODEL_FILES, PICKLE_FILES

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# But for sentence-transformers' modules, such as 1_Pooling.
_NOT_IN_SUBFOLDERS = ["[!0-9]*/*", "[0-9]*[!A-Za-z]/*", "[0-9]*/*/*"]


def is_repository_name(name: str) -> bool:
    return _REPOSITORY.fullmatch(name) is not None


def fetch_repository(
    name: str,
    *,
    revision: str | None,
    local_only: bool = False,
    folder: Path | None = None,
    allow_pickle: bool = False,
) -> Path:
    """The repository's model folder: from the local cache if complete there, else downloaded.

    folder: where to download to instead of the hub's cache; an interrupted download goes on there.

    Raises `ConfigError` when the hub cannot be reached or refuses, and when the repository has no
    safetensors weights.
    """
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    try:
        found = Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                allow_patterns=[*MODEL_FILES, *(PICKLE_FILES if allow_pickle else ())],
                ignore_patterns=_NOT_IN_SUBFOLDERS,
                local_files_only=local_only,
                local_dir=folder,
            )
        )
    except errors.GatedRepoError as error:
        raise ConfigError(
            f"{name} is gated on the hub: accept its terms there, then set HF_TOKEN to a token of "
            "that account"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"{name} has no revision {revision!r} on the hub") from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigError(
            f"the hub has no model {name!r}, or it is private: check the spelling, or set HF_TOKEN "
            "to a token that may read it"
        ) from error
    except (errors.LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise
        raise ConfigError(
            f"{name} is not in the local hub cache, and the hub cannot be reached from here "
            f"({type(error).__name__}). Check the network and proxy settings (HTTPS_PROXY, "
            "HF_ENDPOINT), or give the path of a model folder."
        ) from error
    if not allow_pickle and not any(found.glob("*.safetensors")):
        raise ConfigError(
            f"{name} has no safetensors weights on the hub; pickled weights are not loaded. "
            "Look for a converted copy of the model."
        )
    return found
