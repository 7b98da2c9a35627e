"""Engine outputs to `RequestOutput`s: text, stop strings, logprobs, and the n samples of a request.

Lives on the API side. The engine knows sequences and tokens; what a caller sees is made here.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from octavo_protocol.outputs import CompletionOutput, Logprob, RequestOutput, RequestStateStats
from octavo_protocol.sampling_params import RequestOutputKind, SamplingParams
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.engine.detokenizer import IncrementalDetokenizer, StopStrings
from octavo_runtime.engine.messages import EngineRequest, SequenceOutput, TokenLogprobs


@dataclass(slots=True)
class _SequenceState:
    """One of a request's n sequences. `num_shown_*` is what DELTA outputs have carried so far."""

    request: "_RequestState"
    index: int
    detokenizer: IncrementalDetokenizer | None
    stop: StopStrings
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] | None = None
    cumulative_logprob: float | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    num_shown_chars: int = 0
    num_shown_tokens: int = 0


@dataclass(slots=True)
class _RequestState:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    sequences: dict[str, _SequenceState] = field(default_factory=dict)
    stats: RequestStateStats = field(default_factory=RequestStateStats)
    started: float = 0.0
    num_cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ProcessedStep:
    """outputs: what callers get now. aborts: sequence ids that a stop string ended."""

    outputs: list[RequestOutput]
    aborts: list[str]


class OutputProcessor:
    """State of all requests in flight. `tokenizer` None: token ids only, no text."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._requests: dict[str, _RequestState] = {}
        self._sequences: dict[str, _SequenceState] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def add(
        self,
        request_id: str,
        children: list[EngineRequest],
        params: SamplingParams,
        *,
        prompt: str | None,
    ) -> None:
        """Registers a request; `children` are its n sequences as the engine gets them."""
        state = _RequestState(
            request_id, prompt, children[0].prompt_token_ids, params, started=time.monotonic()
        )
        state.stats.arrival_time = children[0].arrival_time
        for index, child in enumerate(children):
            detokenizer = None
            if self._tokenizer is not None and params.detokenize:
                detokenizer = IncrementalDetokenizer(
                    self._tokenizer, skip_special_tokens=params.skip_special_tokens
                )
            sequence = _SequenceState(
                state,
                index,
                detokenizer,
                StopStrings(params.stop_strings, include=params.include_stop_str_in_output),
            )
            if params.logprobs is not None:
                sequence.logprobs, sequence.cumulative_logprob = [], 0.0
            state.sequences[child.request_id] = sequence
            self._sequences[child.request_id] = sequence
        self._requests[request_id] = state

    def abort(self, request_id: str) -> list[str]:
        """Forgets a request; returns the ids of its sequences that the engine still has."""
        state = self._requests.pop(request_id, None)
        if state is None:
            return []
        return [child for child in state.sequences if self._sequences.pop(child, None)]

    def process(self, outputs: Iterable[SequenceOutput]) -> ProcessedStep:
        """Outputs of sequences that are no longer known are dropped."""
        touched: dict[str, list[_SequenceState]] = {}
        aborts: list[str] = []
        for output in outputs:
            sequence = self._sequences.get(output.request_id)
            if sequence is None:
                continue
            if self._update(sequence, output):
                aborts.append(output.request_id)
            if sequence.finish_reason is not None:
                del self._sequences[output.request_id]
            touched.setdefault(sequence.request.request_id, []).append(sequence)
        results = []
        for request_id, sequences in touched.items():
            result = self._output(self._requests[request_id], sequences)
            if result is not None:
                results.append(result)
                if result.finished:
                    del self._requests[request_id]
        return ProcessedStep(results, aborts)

    def _update(self, sequence: _SequenceState, output: SequenceOutput) -> bool:
        """Takes new tokens in. True when a stop string ended what the engine still runs."""
        state = sequence.request
        now = time.monotonic()
        if state.stats.first_token_ts == 0.0:
            state.stats.first_token_ts = now
            state.stats.first_token_latency = now - state.started
            state.num_cached_tokens = output.num_cached_tokens
        state.stats.last_token_ts = now
        state.stats.num_generation_tokens += len(output.new_token_ids)
        state.stats.num_preemptions = max(state.stats.num_preemptions, output.num_preemptions)
        sequence.token_ids += output.new_token_ids
        for position in output.new_logprobs or []:
            self._add_logprobs(sequence, position)
        sequence.finish_reason = output.finish_reason
        sequence.stop_reason = output.stop_reason
        if sequence.detokenizer is None:
            return False
        new_text = sequence.detokenizer.append(output.new_token_ids)
        if output.finish_reason is not None:
            new_text += sequence.detokenizer.flush()
        sequence.text += new_text
        if not new_text or len(sequence.token_ids) < state.params.min_tokens:
            return False
        match = sequence.stop.find(sequence.text, len(new_text))
        if match is None:
            return False
        sequence.text = sequence.text[: match.cut]
        sequence.finish_reason, sequence.stop_reason = "stop", match.string
        return output.finish_reason is None

    def _add_logprobs(self, sequence: _SequenceState, position: TokenLogprobs) -> None:
        assert sequence.logprobs is not None
        assert sequence.cumulative_logprob is not None
        sequence.cumulative_logprob += position.logprobs[0]
        ranks = [position.sampled_rank, *range(1, len(position.token_ids))]
        entry: dict[int, Logprob] = {}
        for token_id, logprob, rank in zip(
            position.token_ids, position.logprobs, ranks, strict=True
        ):
            text = self._tokenizer.token_text(token_id) if self._tokenizer else None
            entry.setdefault(token_id, Logprob(logprob, rank, text))
        sequence.logprobs.append(entry)

    def _output(self, state: _RequestState, touched: list[_SequenceState]) -> RequestOutput | None:
        """What the caller gets after a step, by its output kind; None for nothing yet."""
        kind = state.params.output_kind
        finished = all(s.finish_reason is not None for s in state.sequences.values())
        if kind is RequestOutputKind.FINAL_ONLY and not finished:
            return None
        if kind is RequestOutputKind.DELTA:
            completions = [_delta(sequence) for sequence in touched]
        else:
            completions = [_whole(sequence) for sequence in state.sequences.values()]
        return RequestOutput(
            request_id=state.request_id,
            prompt=state.prompt,
            prompt_token_ids=state.prompt_token_ids,
            outputs=completions,
            finished=finished,
            metrics=state.stats,
            num_cached_tokens=state.num_cached_tokens,
        )


def _whole(sequence: _SequenceState) -> CompletionOutput:
    is_over = sequence.finish_reason is not None
    safe = len(sequence.text) if is_over else sequence.stop.num_safe_chars(sequence.text)
    return CompletionOutput(
        index=sequence.index,
        text=sequence.text[:safe],
        token_ids=list(sequence.token_ids),
        cumulative_logprob=sequence.cumulative_logprob,
        logprobs=None if sequence.logprobs is None else list(sequence.logprobs),
        finish_reason=sequence.finish_reason,
        stop_reason=sequence.stop_reason,
    )


def _delta(sequence: _SequenceState) -> CompletionOutput:
    whole = _whole(sequence)
    first_char, first_token = sequence.num_shown_chars, sequence.num_shown_tokens
    sequence.num_shown_chars = max(first_char, len(whole.text))
    sequence.num_shown_tokens = len(whole.token_ids)
    whole.text = whole.text[first_char:]
    whole.token_ids = whole.token_ids[first_token:]
    if whole.logprobs is not None:
        whole.logprobs = whole.logprobs[first_token:]
    return whole
