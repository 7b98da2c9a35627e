"""OpenAI's Files API: what answers look like. Uploads are multipart forms, not JSON."""

from typing import Literal

import msgspec

from octavo_protocol.errors import ValidationError

# What clients may upload a file for; outputs of batches are `batch_output`.
PURPOSES = ("batch", "user_data")


class FileObject(msgspec.Struct, kw_only=True):
    """One stored file. Times are Unix seconds; expires_at: None = it is kept until deleted."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    expires_at: int | None = None


class FileList(msgspec.Struct, kw_only=True):
    """One page, in the order that was asked for."""

    object: str = "list"
    data: list[FileObject]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class FileDeleted(msgspec.Struct):
    id: str
    object: str = "file"
    deleted: bool = True


def check_purpose(purpose: str) -> str:
    """`purpose`, where files may be uploaded for it. Raises `ValidationError`."""
    if purpose not in PURPOSES:
        raise ValidationError(
            f"purpose must be one of {', '.join(PURPOSES)}, not {purpose[:80]!r}",
            parameter="purpose",
        )
    return purpose
