"""What a run of `octavo batch run` leaves for others: notes on its batch, and its last words.

The operator finds the batch of a BatchJob by the notes, and learns from the last words, which a
container leaves as its termination message, how it ended.
"""

from pathlib import PurePosixPath

import msgspec

# In a batch's metadata: the key of its run, and `namespace/name` of the BatchJob that it is for.
KEY_NOTE = "octavo.dev/key"
BATCH_JOB_NOTE = "octavo.dev/batch-job"


class RunSummary(msgspec.Struct, kw_only=True):
    """How a batch ended. status: of the batch. output, errors: URLs that were written; None where
    there was nothing to write. message: the whole of it in one line.
    """

    batch_id: str
    status: str
    total: int = 0
    completed: int = 0
    failed: int = 0
    output: str | None = None
    errors: str | None = None
    message: str = ""


def decode_summary(text: str) -> RunSummary | None:
    """None for what is no summary, as the last lines of a log."""
    try:
        return msgspec.json.decode(text, type=RunSummary)
    except (msgspec.DecodeError, UnicodeError):
        return None


def errors_beside(url: str) -> str:
    """Where the failed requests of an output go: `answers.jsonl` -> `answers.errors.jsonl`."""
    folder, slash, name = url.rpartition("/")
    path = PurePosixPath(name)
    return f"{folder}{slash}{path.stem}.errors{path.suffix}"
