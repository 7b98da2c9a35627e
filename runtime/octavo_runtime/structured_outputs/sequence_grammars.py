"""The engine side: sequences that wait for their grammar, and those that follow one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from octavo_protocol.errors import OctavoError
from octavo_runtime.engine.messages import EngineRequest, SequenceOutput
from octavo_runtime.structured_outputs.compiler import GrammarCompiler
from octavo_runtime.structured_outputs.grammar import refusal
from octavo_runtime.structured_outputs.masks import MaskComputer
from octavo_runtime.structured_outputs.matcher import SequenceGrammar

TokenMasks = Mapping[int, NDArray[np.int32]]


class SequenceGrammars:
    """All grammar state of an engine. Used from the engine's thread only.

    A request with a grammar waits here, not in the scheduler, until the grammar is compiled, and so
    delays nobody. on_ready: called, in any thread, when one that waits may go on.
    """

    def __init__(
        self,
        tokenizer_file: Path,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        *,
        num_threads: int,
        on_ready: Callable[[], None],
    ) -> None:
        self._tokenizer_file = tokenizer_file
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._num_threads = num_threads
        self._on_ready = on_ready
        self._compiler: GrammarCompiler | None = None
        self._masks: MaskComputer | None = None
        self._pending: dict[str, tuple[EngineRequest, Future[LLMatcher]]] = {}
        self._sequences: dict[str, tuple[EngineRequest, SequenceGrammar]] = {}

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    @property
    def num_pending_tokens(self) -> int:
        requests = (request for request, _ in self._pending.values())
        return sum(len(each.prompt_token_ids) + len(each.output_token_ids) for each in requests)

    @property
    def has_ready(self) -> bool:
        """`take_ready` would return something."""
        return any(future.done() for _, future in self._pending.values())

    def add(self, request: EngineRequest) -> None:
        """Starts to compile. Raises `ValidationError` where the model has no tokenizer."""
        future = self._load_compiler().compile(request.grammar)
        self._pending[request.request_id] = request, future
        future.add_done_callback(lambda _: self._on_ready())

    def wait_ready(self, timeout_s: float) -> None:
        """Blocks until one that waits may go on, or the time is over."""
        futures = [future for _, future in self._pending.values()]
        wait(futures, timeout=timeout_s, return_when=FIRST_COMPLETED)

    def take_ready(self) -> tuple[list[EngineRequest], list[SequenceOutput]]:
        """Requests whose grammar is compiled, in order, and ends of those where it cannot be or
        where what they generated elsewhere leaves nothing to follow.
        """
        ready, failed = [], []
        for request_id, (request, future) in list(self._pending.items()):
            if not future.done():
                continue
            del self._pending[request_id]
            try:
                matcher = future.result().deep_copy()
            except OctavoError as error:
                failed.append(
                    SequenceOutput(request_id, [], finish_reason="error", error=error.message)
                )
                continue
            end = request.reasoning_end_token_ids if request.is_reasoning else []
            grammar = SequenceGrammar(matcher, reasoning_end_token_ids=end)
            grammar.advance(request.output_token_ids)
            if (reason := _end_reason(request, grammar)) is not None:
                failed.append(
                    SequenceOutput(request_id, [], finish_reason=reason, error=grammar.error)
                )
                continue
            self._sequences[request_id] = request, grammar
            ready.append(request)
        return ready, failed

    def forget(self, request_ids: Iterable[str]) -> None:
        """Unknown ids are ignored."""
        for request_id in request_ids:
            self._pending.pop(request_id, None)
            self._sequences.pop(request_id, None)

    def start_masks(self, rows: Mapping[int, str]) -> Callable[[], TokenMasks] | None:
        """Begins the masks of a step. rows: row → request id. None where no row has a grammar."""
        matchers = {
            row: self._sequences[request_id][1].matcher
            for row, request_id in rows.items()
            if request_id in self._sequences and self._sequences[request_id][1].is_active
        }
        if not matchers:
            return None
        if self._masks is None:
            self._masks = MaskComputer(self._vocab_size, self._num_threads)
        return self._masks.start(matchers)

    def advance(self, outputs: Iterable[SequenceOutput]) -> list[str]:
        """Takes the new tokens of a step in; ids of the sequences that their grammar has ended.

        The outputs of those say so: "stop" where the grammar is complete and no end-of-sequence
        token would be heard, "error" where the grammar's limits are exceeded.
        """
        ended = []
        for output in outputs:
            found = self._sequences.get(output.request_id)
            if found is None:
                continue
            request, grammar = found
            if output.finish_reason is None:
                grammar.advance(output.new_token_ids)
                output.finish_reason = _end_reason(request, grammar)
                if output.finish_reason is None:
                    continue
                if output.finish_reason == "error":
                    output.error = grammar.error
                    output.new_token_ids, output.new_logprobs = [], None
                ended.append(output.request_id)
            del self._sequences[output.request_id]
        return ended

    def close(self) -> None:
        if self._compiler is not None:
            self._compiler.close()
        if self._masks is not None:
            self._masks.close()

    def _load_compiler(self) -> GrammarCompiler:
        if self._compiler is None:
            try:
                tokenizer_json = self._tokenizer_file.read_text(encoding="utf-8")
            except OSError as error:
                raise refusal("this model has no tokenizer.json") from error
            self._compiler = GrammarCompiler(tokenizer_json, self._vocab_size, self._eos_token_ids)
        return self._compiler


def _end_reason(request: EngineRequest, grammar: SequenceGrammar) -> str | None:
    """Why the grammar ends the sequence; None: it goes on."""
    if grammar.error:
        return "error"
    is_over = grammar.is_finished and not _can_end(request, grammar.num_tokens)
    return "stop" if is_over else None


def _can_end(request: EngineRequest, num_output_tokens: int) -> bool:
    """An end-of-sequence token at the next position would end the sequence."""
    params = request.sampling
    return (
        request.eos_token_id is not None
        and not params.ignore_eos
        and num_output_tokens >= params.min_tokens
    )
