"""Log-probabilities as the engine sends them to those that a caller sees."""

from collections.abc import Callable, Sequence
from typing import cast

from octavo_protocol.logprobs import FlatLogprobs
from octavo_protocol.outputs import Logprob, PromptLogprobs
from octavo_runtime.engine.messages import TokenLogprobs

TextOf = Callable[[int], str | None]
# One entry per position. A `FlatLogprobs` is used as such a list: it is indexed, sliced and
# appended to, and never changed otherwise.
LogprobList = list[dict[int, Logprob]]


def new_list(*, is_flat: bool) -> LogprobList:
    return cast(LogprobList, FlatLogprobs()) if is_flat else []


def new_prompt_list(*, is_flat: bool) -> PromptLogprobs:
    """The first token of a prompt has no log-probability."""
    positions: PromptLogprobs = cast(PromptLogprobs, FlatLogprobs()) if is_flat else []
    positions.append(None)
    return positions


def append(positions: LogprobList | PromptLogprobs, new: TokenLogprobs, text_of: TextOf) -> None:
    """Adds one position. The first token wins where the best tokens hold it again."""
    ranks: Sequence[int] = new.ranks or [new.sampled_rank, *range(1, len(new.token_ids))]
    entries: dict[int, tuple[float, int]] = {}
    for token_id, logprob, rank in zip(new.token_ids, new.logprobs, ranks, strict=True):
        entries.setdefault(token_id, (logprob, rank))
    if isinstance(positions, FlatLogprobs):
        positions.append_fast(
            list(entries),
            [logprob for logprob, _ in entries.values()],
            [rank for _, rank in entries.values()],
            [text_of(token_id) for token_id in entries],
        )
    else:
        positions.append(
            {
                token_id: Logprob(logprob, rank, text_of(token_id))
                for token_id, (logprob, rank) in entries.items()
            }
        )
