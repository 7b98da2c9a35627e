"""Settings of files and batches."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """files_url: folder or bucket where files lie. has_worker: this router works on batches."""

    files_url: str
    has_worker: bool
    max_file_bytes: int
    max_lines: int
    max_line_bytes: int
