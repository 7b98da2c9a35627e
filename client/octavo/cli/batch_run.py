"""`octavo batch run`: from a file of requests at one URL to a file of answers at another."""

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.cli.answering import DEFAULT_URL, ApiKey, Url
from octavo.cli.batch_options import (
    DEFAULT_ENDPOINT,
    DEFAULT_WINDOW,
    Endpoint,
    Priority,
    Window,
)
from octavo.cli.options import option

if TYPE_CHECKING:
    from octavo_protocol.openai.batches import Batch

_NOT_COMPLETED = 1
_STEP_PERCENT = 10


def run(
    source: Annotated[
        str,
        option(
            "--input",
            help="File of requests in OpenAI's batch format: a path, s3://, gs:// or https://.",
        ),
    ],
    output: Annotated[
        str, option("--output", help="File to write the answers to: a path, s3:// or gs://.")
    ],
    errors: Annotated[
        str | None,
        option(
            "--errors",
            help="File to write the requests that failed to. Default: beside the output, as "
            "answers.errors.jsonl.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        option(
            "--model", help="Served model that all lines ask. Default: each line names its own."
        ),
    ] = None,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    window: Window = DEFAULT_WINDOW,
    priority: Priority = 0,
    key: Annotated[
        str | None,
        option(
            "--key",
            help="Name of this run: a run of the same key goes on where the first one ended. "
            "Default: a random one, which is told.",
            show_default=False,
        ),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option("--metadata", metavar="KEY=VALUE", help="A note on the batch; repeat it."),
    ] = None,
    summary_file: Annotated[
        Path | None,
        option(
            "--summary-file",
            help="File to write how it ended to, as JSON; in a pod: /dev/termination-log.",
            show_default=False,
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Have a file of requests answered, from one URL to another.

    The exit status is 0 where the batch completed, also with failed lines; 1 where it failed,
    expired or was cancelled (what is done is written); 2 for an error, after which the same
    command with the same --key goes on. A run that is killed leaves the batch running.
    """
    import msgspec

    from octavo.batch_run import BatchRun, RunSpec
    from octavo.cli.batch import connected, pair
    from octavo_protocol.batch_runs import errors_beside

    spec = RunSpec(
        input=source,
        output=output,
        errors=errors or errors_beside(output),
        key=key or secrets.token_hex(8),
        endpoint=endpoint,
        model=model,
        window=window,
        priority=priority,
        notes=dict(pair(text) for text in metadata or ()),
    )
    if key is None:
        _say(f"the key of this run is {spec.key}; with --key {spec.key} it can be gone on with")
    with connected(url, api_key) as client:
        try:
            summary = BatchRun(client, spec, progress=_Progress().show).run()
        except KeyboardInterrupt:
            _say(f"the batch goes on; the same command with --key {spec.key} gets its results")
            raise typer.Exit(_NOT_COMPLETED) from None
    if summary_file is not None:
        summary_file.write_bytes(msgspec.json.encode(summary))
    print(summary.message)
    if summary.status != "completed":
        raise typer.Exit(_NOT_COMPLETED)


class _Progress:
    """A line where there is something new to say: for logs."""

    def __init__(self) -> None:
        self._told: tuple[str, int] | None = None

    def show(self, batch: "Batch") -> None:
        from octavo.batch_client import described

        counts = batch.request_counts
        percent = 100 * (counts.completed + counts.failed) // max(1, counts.total)
        state = batch.status, percent // _STEP_PERCENT
        if state != self._told:
            self._told = state
            _say(f"{batch.id} is {described(batch)}")


def _say(text: str) -> None:
    print(f"octavo: {text}", file=sys.stderr, flush=True)
