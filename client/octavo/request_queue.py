"""Requests of one `LLM`: queued together or not at all, then run to their ends."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from octavo.engine.llm_engine import LLMEngine
from octavo.progress import ProgressBar, TokenRates, progress_bar
from octavo.prompts import RenderedPrompt
from octavo_protocol.errors import ValidationError
from octavo_protocol.lora import LoRARequest
from octavo_protocol.outputs import RequestOutput
from octavo_protocol.pooling import PoolingOutput, PoolingParams, PoolingRequestOutput
from octavo_protocol.sampling_params import RequestOutputKind, SamplingParams

Pooled = PoolingRequestOutput[PoolingOutput]


class RequestCounter:
    """Numbers requests from 0 on. counter: what `next` gives next."""

    def __init__(self) -> None:
        self.counter = 0

    def __next__(self) -> int:
        number = self.counter
        self.counter += 1
        return number

    def reset(self) -> None:
        self.counter = 0


class RequestQueue:
    """Ids are the counter's numbers, in the order of queueing.

    The engine is not thread-safe: a thread waits while another one queues or runs.
    """

    def __init__(self, engine: LLMEngine, counter: RequestCounter) -> None:
        self._engine = engine
        self._counter = counter
        self._pending: dict[str, RequestOutput | Pooled | None] = {}
        self._lock = threading.RLock()  # a progress bar may call back

    def add(
        self,
        prompts: Iterable[RenderedPrompt],
        params: Sequence[SamplingParams] | Sequence[PoolingParams],
        priorities: Sequence[int],
        adapters: Sequence[Any],
    ) -> list[str]:
        """Queues all of them; returns their ids. After an exception none of them is queued.

        adapters: a `LoRARequest` or None for each; with `load_inplace` it is loaded once.
        """
        added: list[str] = []
        with self._lock:
            try:
                for prompt, each, priority, adapter in zip(
                    prompts, params, priorities, loaded_once(adapters), strict=True
                ):
                    request_id = str(next(self._counter))
                    self._engine.add_rendered(
                        request_id,
                        prompt,
                        final_only(each),
                        priority=priority,
                        lora_request=adapter,
                    )
                    added.append(request_id)
            except BaseException:
                self._engine.abort_request(added)
                raise
            self._pending |= dict.fromkeys(added)
        return added

    def run(self, request_ids: Sequence[str] | None, use_tqdm: ProgressBar) -> list[RequestOutput]:
        """Runs these requests to their ends, or all; outputs in that order.

        Others go on beside them, and their outputs are kept. A request that was aborted meanwhile
        has no output. After an exception, Ctrl-C included, none of these is queued any more.
        """
        with self._lock:
            return self._run(request_ids, use_tqdm)

    def run_pooling(self, request_ids: Sequence[str], use_tqdm: ProgressBar) -> list[Pooled]:
        """As `run`, of a model that pools."""
        with self._lock:
            return self._run(request_ids, use_tqdm)

    def _run(self, request_ids: Sequence[str] | None, use_tqdm: ProgressBar) -> list[Any]:
        wanted = list(self._pending) if request_ids is None else list(request_ids)
        waiting = {each for each in wanted if self._pending[each] is None}
        try:
            with progress_bar(use_tqdm, len(waiting), "Processed prompts") as bar:
                rates = TokenRates(bar)
                while waiting and self._engine.has_unfinished_requests():
                    for output in self._engine.step():
                        if output.request_id in self._pending:
                            self._pending[output.request_id] = output
                        if output.request_id in waiting:
                            waiting.remove(output.request_id)
                            rates.finished(output)
        except BaseException:
            self._engine.abort_request(wanted)
            raise
        finally:
            ended = [self._pending.pop(each) for each in wanted]
        return [output for output in ended if output is not None]


def final_only(params: Any) -> Any:
    """A copy of sampling parameters that yields one output, at the end."""
    if not isinstance(params, SamplingParams):
        return params  # refused where it is queued
    copied = params.clone()
    copied.output_kind = RequestOutputKind.FINAL_ONLY
    return copied


def loaded_once(adapters: Iterable[Any]) -> Iterator[Any]:
    """The same, but for `load_inplace` of those that came before."""
    seen = set()
    for each in adapters:
        if not isinstance(each, LoRARequest):
            yield each  # None, or refused where it is queued
            continue
        is_again = each.load_inplace and each.lora_name in seen
        seen.add(each.lora_name)
        yield msgspec.structs.replace(each, load_inplace=False) if is_again else each


def per_prompt(name: str, value: Any, count: int, default: Any) -> list[Any]:
    """`value` for each prompt: one for all, or a sequence of the right length."""
    if value is None:
        value = default
    if not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise ValidationError(
            f"{len(value)} {name} for {count} prompts: give one, or one per prompt", parameter=name
        )
    return list(value)
