"""Constant streaming load through the `openai` client, and what became of every request."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import openai

MAX_TOKENS = 24


@dataclass(frozen=True)
class Answer:
    """What came of one request. error: what the client raised, None if it did not."""

    begun: float
    seconds: float
    tokens: int
    finish_reason: str | None
    error: str | None

    @property
    def is_truncated(self) -> bool:
        """The stream ended as if all were well, and yet lacks tokens or its end."""
        return self.error is None and (self.finish_reason, self.tokens) != ("length", MAX_TOKENS)


@dataclass
class Load:
    """Requests of one run, in the order in which they ended."""

    answers: list[Answer] = field(default_factory=list)

    @property
    def failed(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.error is not None]

    @property
    def truncated(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.is_truncated]

    def report(self) -> dict[str, Any]:
        """For records and messages; the first few losses in full."""
        return {
            "sent": len(self.answers),
            "failed": len(self.failed),
            "truncated": len(self.truncated),
            "longest_s": round(max((each.seconds for each in self.answers), default=0.0), 2),
            "losses": [asdict(each) for each in [*self.failed, *self.truncated][:5]],
        }

    def assert_nothing_lost(self, *, at_least: int) -> None:
        report = self.report()
        assert report["sent"] >= at_least, report
        assert (report["failed"], report["truncated"]) == (0, 0), report


@contextmanager
def streaming_load(base_url: str, model: str, *, threads: int = 2) -> Iterator[Load]:
    """While it lasts, `threads` clients stream one answer after the other; then all are let end.

    Clients do not retry: what fails is counted.
    """
    load, stopping = Load(), threading.Event()

    def work(number: int) -> None:
        with openai.OpenAI(
            base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=120
        ) as client:
            turn = 0
            while not stopping.is_set():
                load.answers.append(_ask(client, model, f"Client {number}, question {turn}:"))
                turn += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield load
    finally:
        stopping.set()
        for worker in workers:
            worker.join()


def _ask(client: openai.OpenAI, model: str, prompt: str) -> Answer:
    begun, tokens, finish_reason, error = time.time(), 0, None, None
    clock = time.monotonic()
    try:
        stream = client.completions.create(
            model=model,
            prompt=prompt,
            max_tokens=MAX_TOKENS,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        for chunk in stream:
            if chunk.usage:
                tokens = chunk.usage.completion_tokens
            for choice in chunk.choices:
                finish_reason = choice.finish_reason or finish_reason
    except Exception as failure:  # noqa: BLE001  # whatever a client sees is a failed request
        error = f"{failure!r}, from {failure.__cause__!r}"
    return Answer(begun, round(time.monotonic() - clock, 3), tokens, finish_reason, error)
