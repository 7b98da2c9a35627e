"""`system_fingerprint`: tells answers of different servers or settings apart."""

import functools
import hashlib
from importlib import metadata

from octavo_runtime.server.options import ApiOptions


def fingerprint(options: ApiOptions, model: str, dtype: str) -> str | None:
    """Equal for servers that answer alike; None where the options say so."""
    match options.fingerprint_mode:
        case "none":
            return None
        case "custom":
            return options.fingerprint_value
        case "full":
            return _full(model, dtype)
        case "hash":
            return "fp_" + hashlib.sha256(_full(model, dtype).encode()).hexdigest()[:12]


@functools.cache
def _full(model: str, dtype: str) -> str:
    return f"octavo-{metadata.version('octavo')}-{model}-{dtype}"
