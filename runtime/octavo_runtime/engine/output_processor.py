"""Engine outputs to `RequestOutput`s: text, stop strings, logprobs, and the n samples of a request.

Lives on the API side. The engine knows sequences and tokens; what a caller sees is made here.
"""

import functools
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from octavo_protocol.errors import ValidationError
from octavo_protocol.lora import LoRARequest
from octavo_protocol.outputs import (
    CompletionOutput,
    PromptLogprobs,
    RequestOutput,
    RequestStateStats,
)
from octavo_protocol.sampling_params import RequestOutputKind, SamplingParams
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.engine import logprob_output
from octavo_runtime.engine.detokenizer import IncrementalDetokenizer, StopStrings
from octavo_runtime.engine.logprob_output import LogprobList
from octavo_runtime.engine.messages import EngineRequest, SequenceOutput
from octavo_runtime.engine.output_so_far import OutputSoFar

REPETITION_DETECTED = "repetition_detected"


@dataclass(slots=True)
class _SequenceState:
    """One of a request's n sequences. `*_shown*` is what outputs have carried so far."""

    request: "_RequestState"
    index: int
    detokenizer: IncrementalDetokenizer | None
    stop: StopStrings
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: LogprobList | None = None
    cumulative_logprob: float | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    num_shown_chars: int = 0
    num_shown_tokens: int = 0
    is_end_shown: bool = False

    def is_due(self, interval: int) -> bool:
        """An output is due: the first, the last, or one with `interval` new tokens."""
        if self.finish_reason is not None:
            return not self.is_end_shown
        num_new = len(self.token_ids) - self.num_shown_tokens
        return num_new >= (interval if self.num_shown_tokens else 1)


@dataclass(slots=True)
class _RequestState:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    lora_request: LoRARequest | None = None
    sequences: dict[str, _SequenceState] = field(default_factory=dict)
    stats: RequestStateStats = field(default_factory=RequestStateStats)
    started: float = 0.0
    num_cached_tokens: int | None = None
    prompt_logprobs: PromptLogprobs | None = None

    @property
    def lacks_prompt_logprobs(self) -> bool:
        given = self.prompt_logprobs
        return given is not None and len(given) < len(self.prompt_token_ids)


@dataclass(frozen=True, slots=True)
class ProcessedStep:
    """outputs: what callers get now. aborts: sequence ids that the engine is to end."""

    outputs: list[RequestOutput]
    aborts: list[str]


class OutputProcessor:
    """State of all requests in flight. `tokenizer` None: token ids only, no text.

    stream_interval: fewest new tokens of an output in between; requests may ask for more.
    """

    def __init__(self, tokenizer: Tokenizer | None, *, stream_interval: int = 1) -> None:
        self._tokenizer = tokenizer
        self._stream_interval = stream_interval
        self._token_text = functools.cache(tokenizer.token_text if tokenizer else _no_text)
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
        visible_special_ids: frozenset[int] = frozenset(),
        lora_request: LoRARequest | None = None,
    ) -> None:
        """Registers a request; `children` are its n sequences as the engine gets them.

        visible_special_ids: special tokens that stay in the text even with skip_special_tokens.
        Raises `ValidationError` while the request's id, or that of one of its sequences, is taken.
        """
        taken = any(child.request_id in self._sequences for child in children)
        if taken or request_id in self._requests:
            raise ValidationError(
                f"request id {request_id!r} is in use: give every request an id of its own",
                parameter="request_id",
            )
        state = _RequestState(
            request_id,
            prompt,
            children[0].prompt_token_ids,
            params,
            lora_request,
            started=time.monotonic(),
        )
        state.stats.arrival_time = children[0].arrival_time
        state.stats.queued_ts = state.started
        if params.prompt_logprobs is not None:
            state.prompt_logprobs = logprob_output.new_prompt_list(is_flat=params.flat_logprobs)
        for index, child in enumerate(children):
            detokenizer = None
            if self._tokenizer is not None and params.detokenize:
                detokenizer = IncrementalDetokenizer(
                    self._tokenizer,
                    skip_special_tokens=params.skip_special_tokens,
                    spaces_between_special_tokens=params.spaces_between_special_tokens,
                    visible_special_ids=visible_special_ids,
                )
            sequence = _SequenceState(
                state,
                index,
                detokenizer,
                StopStrings(params.stop_strings, include=params.include_stop_str_in_output),
            )
            if params.logprobs is not None or params.logprob_token_ids is not None:
                sequence.logprobs = logprob_output.new_list(is_flat=params.flat_logprobs)
                sequence.cumulative_logprob = 0.0
            state.sequences[child.request_id] = sequence
            self._sequences[child.request_id] = sequence
        self._requests[request_id] = state

    def replay(self, request_id: str, so_far: Iterable[OutputSoFar]) -> RequestOutput | None:
        """Takes in what the samples of a request that was just added had generated elsewhere; what
        there is to show of it. It counts in no statistics.
        """
        state = self._requests[request_id]
        output = self.process(
            step
            for (child, sequence), each in zip(list(state.sequences.items()), so_far, strict=True)
            for step in each.steps(child, with_logprobs=sequence.logprobs is not None)
        )
        state.stats.first_token_ts, state.stats.num_generation_tokens = 0.0, 0
        return output.outputs[0] if output.outputs else None

    def is_running(self, sequence_id: str) -> bool:
        """The engine has, or is to get, the sequence."""
        return sequence_id in self._sequences

    def abort(self, request_id: str) -> ProcessedStep:
        """Forgets a request. Its last output says "abort" where a sequence had not ended."""
        state = self._requests.pop(request_id, None)
        if state is None:
            return ProcessedStep([], [])
        running = [child for child in state.sequences if self._sequences.pop(child, None)]
        for child in running:
            sequence = state.sequences[child]
            sequence.finish_reason = "abort"
            if sequence.detokenizer is not None:
                sequence.text += sequence.detokenizer.flush()
        last = self._output(state)
        return ProcessedStep([] if last is None else [last], running)

    def process(self, outputs: Iterable[SequenceOutput]) -> ProcessedStep:
        """Outputs of sequences that are no longer known are dropped."""
        touched: dict[str, _RequestState] = {}
        aborts: list[str] = []
        for output in outputs:
            sequence = self._sequences.get(output.request_id)
            if sequence is None:
                continue
            self._take_prompt_logprobs(sequence.request, output)
            if not output.new_token_ids and output.finish_reason is None:
                continue
            if self._update(sequence, output):
                aborts.append(output.request_id)
            if sequence.finish_reason is not None:
                del self._sequences[output.request_id]
            touched[sequence.request.request_id] = sequence.request
        results = []
        for request_id, state in touched.items():
            result = self._output(state)
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
            state.stats.scheduled_ts = output.scheduled_ts
            state.stats.first_token_ts = now
            state.stats.first_token_latency = now - state.started
            if state.num_cached_tokens is None:
                state.num_cached_tokens = output.num_cached_tokens
        state.stats.last_token_ts = now
        state.stats.num_generation_tokens += len(output.new_token_ids)
        state.stats.num_preemptions = max(state.stats.num_preemptions, output.num_preemptions)
        sequence.token_ids += output.new_token_ids
        for position in output.new_logprobs or []:
            assert sequence.logprobs is not None
            assert sequence.cumulative_logprob is not None
            sequence.cumulative_logprob += position.logprobs[0]
            logprob_output.append(sequence.logprobs, position, self._token_text)
        sequence.finish_reason = output.finish_reason
        sequence.stop_reason = output.stop_reason
        if output.finish_reason == "repetition":
            sequence.stop_reason = REPETITION_DETECTED
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

    def _take_prompt_logprobs(self, state: _RequestState, output: SequenceOutput) -> None:
        if state.prompt_logprobs is not None:
            for position in output.new_prompt_logprobs or []:
                logprob_output.append(state.prompt_logprobs, position, self._token_text)

    def _output(self, state: _RequestState) -> RequestOutput | None:
        """What the caller gets after a step, by its output kind; None for nothing yet."""
        kind = state.params.output_kind
        finished = all(s.finish_reason is not None for s in state.sequences.values())
        if kind is RequestOutputKind.FINAL_ONLY and not finished:
            return None
        if not finished and state.lacks_prompt_logprobs:
            return None  # one of its samples may be ahead of the one that scores the prompt
        interval = max(self._stream_interval, state.params.stream_interval or 1)
        due = [sequence for sequence in state.sequences.values() if sequence.is_due(interval)]
        if not due:
            return None
        prompt_logprobs = state.prompt_logprobs
        if kind is RequestOutputKind.DELTA:
            completions = [_delta(sequence) for sequence in due]
            state.prompt_logprobs = None  # the first output carries them
        else:
            completions = [_whole(sequence) for sequence in state.sequences.values()]
        return RequestOutput(
            prompt_logprobs=prompt_logprobs,
            request_id=state.request_id,
            prompt=state.prompt,
            prompt_token_ids=state.prompt_token_ids,
            outputs=completions,
            finished=finished,
            metrics=state.stats,
            lora_request=state.lora_request,
            num_cached_tokens=state.num_cached_tokens,
        )


def _whole(sequence: _SequenceState) -> CompletionOutput:
    return _completion(sequence, 0, 0)


def _delta(sequence: _SequenceState) -> CompletionOutput:
    return _completion(sequence, sequence.num_shown_chars, sequence.num_shown_tokens)


def _completion(sequence: _SequenceState, first_char: int, first_token: int) -> CompletionOutput:
    """What the sequence has from there on; all of it counts as shown from now on."""
    is_over = sequence.finish_reason is not None
    safe = len(sequence.text) if is_over else sequence.stop.num_safe_chars(sequence.text)
    sequence.num_shown_chars = max(sequence.num_shown_chars, safe)
    sequence.num_shown_tokens = len(sequence.token_ids)
    sequence.is_end_shown = is_over
    return CompletionOutput(
        index=sequence.index,
        text=sequence.text[first_char:safe],
        token_ids=sequence.token_ids[first_token:],
        cumulative_logprob=sequence.cumulative_logprob,
        logprobs=None if sequence.logprobs is None else sequence.logprobs[first_token:],
        finish_reason=sequence.finish_reason,
        stop_reason=sequence.stop_reason,
    )


def _no_text(token_id: int) -> None:
    return None
