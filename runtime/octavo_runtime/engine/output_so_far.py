"""What a request had generated elsewhere before this engine goes on with it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from octavo_runtime.engine.messages import SequenceOutput, TokenLogprobs


@dataclass(frozen=True, slots=True)
class OutputSoFar:
    """Of one sample. Without a token the sample begins here.

    num_cached_tokens: prompt tokens that the prefix cache supplied there. finish_reason: why the
    sample is over; None: it goes on. stop_reason: the token id that ended it.
    """

    token_ids: Sequence[int] = ()
    num_cached_tokens: int = 0
    finish_reason: str | None = None
    stop_reason: int | None = None

    def steps(self, request_id: str, *, with_logprobs: bool) -> Iterator[SequenceOutput]:
        """The same tokens as an engine would give them: one by one, since a stop string counts
        from where it is complete. Their log-probabilities were shown before and are not known.
        """
        pieces = [[token_id] for token_id in self.token_ids]
        if not pieces and self.finish_reason is not None:
            pieces = [[]]
        for position, piece in enumerate(pieces, 1):
            is_end = position == len(pieces)
            yield SequenceOutput(
                request_id,
                piece,
                [TokenLogprobs(piece, [0.0], 1)] if with_logprobs and piece else None,
                finish_reason=self.finish_reason if is_end else None,
                stop_reason=self.stop_reason if is_end else None,
                num_cached_tokens=self.num_cached_tokens,
            )
