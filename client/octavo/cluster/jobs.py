"""Jobs of a cluster: a batch each, from requests to outputs.

Requests go up from a file on disk, and outputs are made as answers come down, so that memory grows
with neither. A job's input says what was asked, so that any process can attach to it.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec

from octavo.batch_client import BatchClient, has_ended
from octavo.cluster.bodies import Body
from octavo.cluster.outputs import Json, output_of
from octavo.progress import ProgressBar, progress_bar
from octavo_protocol.errors import GenerationError, OctavoError, ServerError
from octavo_protocol.openai.batches import Batch

_POLL_S, _LONGEST_POLL_S = 0.2, 5.0
_PATIENCE_S = 60.0  # for which a cluster may be away


class ClusterJobs:
    """client: of the platform. window: how long a job may take, as `24h`."""

    def __init__(self, client: BatchClient, *, window: str) -> None:
        self._client = client
        self._window = window

    def submit(self, endpoint: str, bodies: Iterable[Body]) -> str:
        """Has the requests answered; the job's id. Raises `OctavoError`."""
        with tempfile.NamedTemporaryFile("wb", prefix="octavo-", suffix=".jsonl") as file:
            for i, body in enumerate(bodies):
                line = {"custom_id": str(i), "method": "POST", "url": endpoint, "body": body}
                file.write(msgspec.json.encode(line) + b"\n")
            file.flush()
            uploaded = self._client.upload(Path(file.name))
        return self._client.create(uploaded.id, endpoint=endpoint, window=self._window).id

    def wait(self, job_id: str, use_tqdm: ProgressBar) -> Batch:
        """The batch when it has ended. Ctrl-C asks in a terminal whether it is to go on, and is
        raised then. A cluster that is away for less than a minute is waited for.
        """
        batch = self._client.get(job_id)
        try:
            with progress_bar(use_tqdm, batch.request_counts.total, "Cluster") as bar:
                for batch in self._looks(job_id):
                    _show(bar, batch)
        except KeyboardInterrupt:
            self._ask_whether_to_leave(job_id)
            raise
        return batch

    def outputs(
        self, batch: Batch, make: Callable[[str, str, Json, Json], Any] = output_of
    ) -> Iterator[Any]:
        """Of every request, in their order, as they come down.

        make: an output from a request's place, endpoint, body and answer.

        Raises `GenerationError` for the first that failed.
        """
        if batch.errors is not None:
            raise GenerationError(f"job {batch.id} failed: {batch.errors.data[0].message}")
        answers = self._lines(batch.output_file_id)
        errors = self._lines(batch.error_file_id)
        answer, error = next(answers, None), next(errors, None)
        for request in self._lines(batch.input_file_id):
            place = request["custom_id"]
            if answer is not None and answer["custom_id"] == place:
                told = answer["response"]["body"]
                yield make(place, batch.endpoint, request["body"], told)
                answer = next(answers, None)
            elif error is not None and error["custom_id"] == place:
                raise GenerationError(_complaint(batch, error))
            else:
                raise GenerationError(f"job {batch.id} has no result of request {place}")

    def _looks(self, job_id: str) -> Iterator[Batch]:
        pause_s, away_since = _POLL_S, None
        while True:
            try:
                batch = self._client.get(job_id)
                away_since = None
            except ServerError:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > _PATIENCE_S:
                    raise
            else:
                yield batch
                if has_ended(batch):
                    return
            time.sleep(pause_s)
            pause_s = min(1.2 * pause_s, _LONGEST_POLL_S)

    def _lines(self, file_id: str | None) -> Iterator[Any]:
        if file_id is None:
            return
        rest = b""
        for piece in self._client.content(file_id):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield msgspec.json.decode(line)
        if rest:
            yield msgspec.json.decode(rest)

    def _ask_whether_to_leave(self, job_id: str) -> None:
        answer = ""
        if sys.stdin.isatty():
            with suppress(EOFError, KeyboardInterrupt):
                answer = input("\nLeave the job running? [Y/n] ")
        if not answer.strip().lower().startswith("n"):
            print(f"octavo: the job goes on; LLM.attach({job_id!r}) gets it", file=sys.stderr)
            return
        try:
            self._client.cancel(job_id)
        except (OctavoError, httpx.HTTPError) as error:
            print(f"octavo: the job could not be cancelled: {error}", file=sys.stderr)


def _show(bar: Any, batch: Batch) -> None:
    if bar is None:
        return
    counts = batch.request_counts
    bar.total = counts.total or None
    bar.n = counts.completed + counts.failed
    if batch.usage is not None:
        elapsed = bar.format_dict["elapsed"] or 1e-9
        bar.set_postfix_str(f"output: {batch.usage.output_tokens / elapsed:.2f} toks/s", False)
    bar.refresh()


def _complaint(batch: Batch, line: Any) -> str:
    error = line["error"] or line["response"]["body"]["error"]
    counts = batch.request_counts
    return (
        f"{counts.failed} of {counts.total} requests of job {batch.id} failed; the first is "
        f"request {line['custom_id']}: {error['message']}. `octavo batch results {batch.id} "
        "--errors` shows all"
    )
