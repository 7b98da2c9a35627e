"""What an answer's stream tells a router beside its events, and what it replays when it goes on.

`octavo_protocol/continuation.py` has the format. On a continuation the tokens so far pass through
the same steps as new ones (detokenizer, stop strings, parsers, encoders), and the events that come
of them, which the client has, are left out: all state is then as it was.
"""

import hashlib
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from octavo_protocol.continuation import TraceEntry, TraceHead
from octavo_protocol.errors import ValidationError
from octavo_protocol.outputs import CompletionOutput
from octavo_runtime.engine.output_so_far import OutputSoFar

_ID_BYTES = 16


@dataclass(slots=True)
class StreamTrace:
    """Of one answer. is_wanted: a router asked for it. entries: of an answer that goes on.

    is_replaying: what is being written was shown before. num_events: where events are numbered,
    how many were shown before.
    """

    head: TraceHead
    is_wanted: bool = False
    entries: Sequence[TraceEntry] = ()
    is_replaying: bool = field(init=False, default=False)
    _so_far: dict[int, OutputSoFar] = field(init=False)
    _begun: set[int] = field(init=False)
    num_events: int = field(init=False, default=0)
    _noted: list[TraceEntry] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._so_far = _gathered(self.entries)
        self._begun = set(self._so_far)
        self.num_events = max((entry.num_events or 0 for entry in self.entries), default=0)

    @classmethod
    def new(cls, *, is_wanted: bool = False) -> "StreamTrace":
        """The trace of an answer that begins here."""
        return cls(TraceHead(int(time.time()), secrets.token_hex(_ID_BYTES)), is_wanted)

    def new_id(self, prefix: str, key: object) -> str:
        """An identifier that is the same for the same `key` wherever the answer goes on."""
        seed = f"{self.head.nonce}/{key}".encode()
        return prefix + hashlib.blake2b(seed, digest_size=_ID_BYTES).hexdigest()

    def forbid(self) -> None:
        """The answer shows what its tokens do not tell. Raises `ValidationError` if it goes on."""
        if self.entries:
            raise ValidationError(
                "an answer with such log-probabilities or a beam search cannot go on"
            )
        self.is_wanted = False

    def check_choices(self, num_choices: int) -> None:
        """Raises `ValidationError` for entries of choices that the request does not have."""
        if self._so_far and max(self._so_far) >= num_choices:
            raise ValidationError(
                f"the trace has choice {max(self._so_far)}; the request has {num_choices} choices",
                parameter="trace",
            )

    def so_far(self, first_choice: int, n: int) -> Sequence[OutputSoFar]:
        """Of a prompt's n samples; empty where none of them has begun."""
        choices = range(first_choice, first_choice + n)
        if not any(choice in self._so_far for choice in choices):
            return ()
        return [self._so_far.get(choice, OutputSoFar()) for choice in choices]

    def note(
        self, choice: int, completion: CompletionOutput, num_cached_tokens: int | None
    ) -> None:
        """`completion` is written next, or it shows nothing."""
        if not self.is_wanted or self.is_replaying:
            return
        is_first = choice not in self._begun
        self._begun.add(choice)
        stop = completion.stop_reason
        entry = TraceEntry(
            choice,
            list(completion.token_ids),
            num_cached_tokens if is_first else None,
            completion.finish_reason,
            stop if isinstance(stop, int) else None,
        )
        self._noted.append(entry)

    def sealed(self, events: bytes, num_events: int | None = None) -> bytes:
        """What is to be sent for `events`: with the entries noted so far; nothing in a replay.

        num_events: where events are numbered, how many there were with these.
        """
        if self.is_replaying:
            return b""
        if not self._noted or not events:
            return events
        noted, self._noted = self._noted, []
        if num_events is not None:
            noted[-1] = noted[-1]._replace(num_events=num_events)
        return events + b"".join(entry.line() for entry in noted)

    def end(self) -> None:
        """What follows ends the stream, and passes as a whole."""
        self._noted = []


def _gathered(entries: Iterable[TraceEntry]) -> dict[int, OutputSoFar]:
    """By choice."""
    token_ids: dict[int, list[int]] = {}
    cached: dict[int, int] = {}
    ends: dict[int, TraceEntry] = {}
    for entry in entries:
        token_ids.setdefault(entry.choice, []).extend(entry.token_ids)
        if entry.num_cached_tokens is not None:
            cached[entry.choice] = entry.num_cached_tokens
        if entry.finish_reason is not None:
            ends[entry.choice] = entry
    return {
        choice: OutputSoFar(
            ids,
            cached.get(choice, 0),
            ends[choice].finish_reason if choice in ends else None,
            ends[choice].stop_reason if choice in ends else None,
        )
        for choice, ids in token_ids.items()
    }
