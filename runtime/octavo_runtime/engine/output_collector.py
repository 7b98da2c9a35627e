"""Outputs of one request on their way to its reader, who may be slower than the engine.

Outputs that nobody has read yet are merged into one. So a reader that falls behind gets more tokens
at a time instead of a growing queue, and the work per token shrinks exactly when there is too much.
"""

import asyncio
from collections.abc import Sequence

from octavo_protocol.outputs import CompletionOutput, RequestOutput
from octavo_protocol.sampling_params import RequestOutputKind


class OutputCollector:
    """One writer, one reader, one event loop."""

    def __init__(self, kind: RequestOutputKind) -> None:
        self._kind = kind
        self._pending: RequestOutput | None = None
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    def put(self, item: RequestOutput | Exception) -> None:
        """Never blocks. An exception is raised to the reader after what came before it."""
        if isinstance(item, Exception):
            self._error = item
        elif self._pending is None or self._kind is not RequestOutputKind.DELTA:
            self._pending = item
        else:
            self._pending = merge(self._pending, item)
        self._changed.set()

    async def get(self) -> RequestOutput:
        """What has come since the last call, at least one output."""
        await self._changed.wait()
        if self._pending is None:
            assert self._error is not None
            raise self._error
        output, self._pending = self._pending, None
        if self._error is None:
            self._changed.clear()
        return output


def merge(first: RequestOutput, second: RequestOutput) -> RequestOutput:
    """Two successive deltas of one request as one. `first` is used up."""
    later = {output.index: output for output in second.outputs}
    outputs = [_joined(output, later.pop(output.index, None)) for output in first.outputs]
    second.outputs = [*outputs, *later.values()]
    if second.prompt_logprobs is None:
        second.prompt_logprobs = first.prompt_logprobs
    return second


def _joined(first: CompletionOutput, second: CompletionOutput | None) -> CompletionOutput:
    if second is None:
        return first
    second.text = first.text + second.text
    second.token_ids = _list(first.token_ids) + _list(second.token_ids)
    if first.logprobs is not None and second.logprobs is not None:
        second.logprobs = first.logprobs + second.logprobs
    return second


def _list(items: Sequence[int]) -> list[int]:
    return items if isinstance(items, list) else list(items)
