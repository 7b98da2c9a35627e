"""`FlatLogprobs`: the log-probabilities of many positions in a few flat lists."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import overload

from octavo_protocol.outputs import Logprob


class FlatLogprobs(Sequence[dict[int, Logprob]]):
    """Reads like `list[dict[int, Logprob]]`, and keeps no object per token.

    Position i owns the entries start_indices[i] to end_indices[i] of the flat lists. A position
    without log-probabilities (the first of a prompt) is empty. Positions are only added at the end.

        token_ids       | 17  5  | 9  5  3  |
        start_indices     0        2
        end_indices       2        5
    """

    __slots__ = (
        "decoded_tokens",
        "end_indices",
        "logprobs",
        "ranks",
        "start_indices",
        "token_ids",
    )
    __hash__ = None  # type: ignore[assignment]  # it changes, as a list does

    def __init__(self) -> None:
        self.start_indices: list[int] = []
        self.end_indices: list[int] = []
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.ranks: list[int | None] = []
        self.decoded_tokens: list[str | None] = []

    def append(self, position: Mapping[int, Logprob] | None) -> None:
        """Adds a position; None for one without log-probabilities."""
        entries = position or {}
        self.append_fast(
            list(entries),
            [entry.logprob for entry in entries.values()],
            [entry.rank for entry in entries.values()],
            [entry.decoded_token for entry in entries.values()],
        )

    def append_fast(
        self,
        token_ids: Sequence[int],
        logprobs: Sequence[float],
        ranks: Iterable[int | None],
        decoded_tokens: Iterable[str | None],
    ) -> None:
        """Adds a position of distinct tokens, without making a `Logprob`."""
        self.start_indices.append(len(self.token_ids))
        self.token_ids += token_ids
        self.logprobs += logprobs
        self.ranks += ranks
        self.decoded_tokens += decoded_tokens
        self.end_indices.append(len(self.token_ids))

    def extend(self, positions: Iterable[Mapping[int, Logprob] | None]) -> None:
        for position in positions:
            self.append(position)

    def __len__(self) -> int:
        return len(self.start_indices)

    @overload
    def __getitem__(self, index: int) -> dict[int, Logprob]: ...
    @overload
    def __getitem__(self, index: slice) -> "FlatLogprobs": ...
    def __getitem__(self, index: int | slice) -> "dict[int, Logprob] | FlatLogprobs":
        if isinstance(index, slice):
            part = FlatLogprobs()
            for position in range(*index.indices(len(self))):
                part._take(self, position)
            return part
        start, end = self.start_indices[index], self.end_indices[index]
        return {
            self.token_ids[i]: Logprob(self.logprobs[i], self.ranks[i], self.decoded_tokens[i])
            for i in range(start, end)
        }

    def __iter__(self) -> Iterator[dict[int, Logprob]]:
        return (self[index] for index in range(len(self)))

    def __add__(self, other: "FlatLogprobs") -> "FlatLogprobs":
        both = self[:]
        for position in range(len(other)):
            both._take(other, position)
        return both

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return list(self) == list(other)

    def __repr__(self) -> str:
        return f"FlatLogprobs({list(self)!r})"

    def _take(self, other: "FlatLogprobs", position: int) -> None:
        part = slice(other.start_indices[position], other.end_indices[position])
        self.append_fast(
            other.token_ids[part],
            other.logprobs[part],
            other.ranks[part],
            other.decoded_tokens[part],
        )
