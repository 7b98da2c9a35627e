"""`octavo batch`: files of requests that a running platform answers in its own time."""

import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.cli import batch_run
from octavo.cli.answering import DEFAULT_URL, ApiKey, Url
from octavo.cli.batch_options import (
    DEFAULT_ENDPOINT,
    DEFAULT_WINDOW,
    Endpoint,
    Priority,
    Window,
)
from octavo.cli.command import FlexibleCommand
from octavo_protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from octavo.batch_client import BatchClient

app = typer.Typer(
    help="Have a file of requests answered by a running platform, in its own time.",
    no_args_is_help=True,
)
app.command("run", cls=FlexibleCommand)(batch_run.run)
_POLL_S = 1.0
_FAILED = 1

BatchId = Annotated[str, typer.Argument(metavar="BATCH", help="The batch's id: batch_…")]


@app.command("submit", cls=FlexibleCommand)
def submit(
    file: Annotated[Path, typer.Argument(help="Requests in OpenAI's batch format, one per line.")],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    window: Window = DEFAULT_WINDOW,
    priority: Priority = 0,
    metadata: Annotated[
        list[str] | None,
        typer.Option("--metadata", metavar="KEY=VALUE", help="A note on the batch; repeat it."),
    ] = None,
    wait: Annotated[bool, typer.Option("--watch", help="Show its progress until it ends.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Upload a file of requests, have it answered, and print the batch's id.

    Each line is {"custom_id": …, "method": "POST", "url": "/v1/chat/completions", "body": {…}}.
    """
    notes = dict(pair(text) for text in metadata or ())
    with connected(url, api_key) as client:
        uploaded = client.upload(file)
        batch = client.create(
            uploaded.id,
            endpoint=endpoint,
            window=window,
            metadata=notes or None,
            priority=priority,
        )
        print(batch.id, flush=True)
        if wait:
            _watch(client, batch.id)


@app.command("status", cls=FlexibleCommand)
def status(
    batch_id: Annotated[
        str | None,
        typer.Argument(metavar="[BATCH]", help="One batch as JSON. Without it: the newest ones."),
    ] = None,
    limit: Annotated[int, typer.Option(help="How many to list.", min=1, max=100)] = 20,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Print how far a batch is, or the newest batches."""
    import msgspec

    from octavo.batch_client import described

    with connected(url, api_key) as client:
        if batch_id is not None:
            answer = msgspec.json.encode(client.get(batch_id))
            print(msgspec.json.format(answer, indent=2).decode())
            return
        for batch in client.newest(limit):
            created = datetime.fromtimestamp(batch.created_at, UTC).strftime("%Y-%m-%d %H:%M")
            print(f"{batch.id}  {created}  {described(batch)}")


@app.command("watch", cls=FlexibleCommand)
def watch(batch_id: BatchId, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Show the progress of a batch until it ends; Ctrl-C leaves it running.

    The exit status is 1 where it failed, expired or was cancelled.
    """
    with connected(url, api_key) as client:
        _watch(client, batch_id)


@app.command("cancel", cls=FlexibleCommand)
def cancel(batch_id: BatchId, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """End a batch early; what is done stays."""
    from octavo.batch_client import described

    with connected(url, api_key) as client:
        print(described(client.cancel(batch_id)))


@app.command("results", cls=FlexibleCommand)
def results(
    batch_id: BatchId,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to write it. Default: standard output."),
    ] = None,
    errors: Annotated[
        bool, typer.Option("--errors", help="The requests that failed, in place of the answers.")
    ] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Write the answers of a batch that has ended, in the order of its requests."""
    from octavo.batch_client import described

    with connected(url, api_key) as client:
        batch = client.get(batch_id)
        file_id = batch.error_file_id if errors else batch.output_file_id
        if file_id is None:
            what = "failed requests" if errors else "answers"
            raise ConfigError(f"the batch has no file of {what}; it is {described(batch)}")
        if output is None:
            for piece in client.content(file_id):
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        _write(output, client.content(file_id))


def _write(path: Path, pieces: "Iterator[bytes]") -> None:
    """All of it or nothing."""
    from octavo.run_batch_files import writing

    with writing(str(path)) as file:
        for piece in pieces:
            file.write(piece)


@contextmanager
def connected(url: str, api_key: str | None) -> "Iterator[BatchClient]":
    """A client of the platform at `url`, with or without /v1."""
    from octavo.batch_client import BatchClient

    client = BatchClient(url.rstrip("/").removesuffix("/v1"), api_key=api_key)
    try:
        yield client
    finally:
        client.close()


def _watch(client: "BatchClient", batch_id: str) -> None:
    """Exits with 1 for a batch that did not complete."""
    from octavo.batch_client import described, has_ended
    from octavo.progress import progress_bar

    batch = client.get(batch_id)
    try:
        with progress_bar(sys.stderr.isatty(), batch.request_counts.total, batch_id) as bar:
            while not has_ended(batch):
                time.sleep(_POLL_S)
                batch = client.get(batch_id)
                if bar is not None:
                    bar.total = batch.request_counts.total
                    bar.n = batch.request_counts.completed + batch.request_counts.failed
                    bar.refresh()
    except KeyboardInterrupt:
        print(f"\nthe batch goes on; see `octavo batch watch {batch_id}`", file=sys.stderr)
        raise typer.Exit(_FAILED) from None
    print(described(batch))
    if batch.status != "completed":
        raise typer.Exit(_FAILED)


def pair(text: str) -> tuple[str, str]:
    """Name and value of `--metadata`. Raises `ConfigError`."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ConfigError(f"--metadata is written KEY=VALUE, not {text!r}")
    return name, value
