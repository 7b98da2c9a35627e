"""The engine and its API side in one process, synchronously: for `LLM` and for tests."""

import logging
from collections.abc import Iterable, Sequence

from octavo_protocol.errors import UnavailableError
from octavo_protocol.outputs import RequestOutput
from octavo_protocol.sampling_params import SamplingParams
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.engine_core import EngineCore
from octavo_runtime.engine.heap import FrozenHeap
from octavo_runtime.engine.input_processor import InputProcessor
from octavo_runtime.engine.messages import EngineInfo, EngineStats
from octavo_runtime.engine.output_processor import OutputProcessor
from octavo_runtime.structured_outputs.request import RequestGrammars

logger = logging.getLogger(__name__)

_GRAMMAR_WAIT_S = 1.0


class LLMEngine:
    """add_request … step … step until nothing is unfinished. Not thread-safe.

    tokenizer: None for token ids in and out only.
    """

    def __init__(self, config: EngineConfig, tokenizer: Tokenizer | None) -> None:
        self.core = EngineCore(config)
        self.tokenizer = tokenizer
        self.stats = EngineStats()
        self._grammars = RequestGrammars(
            tokenizer, self.core.info.vocab_size, self.core.info.eos_token_ids
        )
        self._early: list[RequestOutput] = []  # made while `sleep` waited for them
        self._inputs = InputProcessor(
            self.core.info, tokenizer, logits_processors=config.logits_processors
        )
        self._outputs = OutputProcessor(tokenizer)
        self._heap = FrozenHeap()  # held while requests run: between them, the heap is the caller's

    @property
    def info(self) -> EngineInfo:
        return self.core.info

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        prompt: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        reasoning_end_token_ids: Sequence[int] = (),
        is_reasoning: bool = False,
        visible_special_ids: frozenset[int] = frozenset(),
    ) -> None:
        """Queues a request. Raises `ValidationError`; then nothing is queued.

        reasoning_end_token_ids, is_reasoning: see `EngineRequest`. visible_special_ids: special
        tokens that show in the text even where special tokens are skipped.
        """
        children = self._inputs.process(
            request_id,
            prompt_token_ids,
            params,
            priority=priority,
            cache_salt=cache_salt,
            grammar=self._grammars.grammar(params),
            reasoning_end_token_ids=reasoning_end_token_ids,
            is_reasoning=is_reasoning,
        )
        self._outputs.add(
            request_id, children, params, prompt=prompt, visible_special_ids=visible_special_ids
        )
        for child in children:
            self.core.add_request(child)

    def step(self) -> list[RequestOutput]:
        """One step of the engine; what it gave to whom.

        Raises `UnavailableError` while the engine sleeps, where requests would wait for ever.
        """
        if self._early:
            early, self._early = self._early, []
            return early
        if not self.core.has_work() and self.has_unfinished_requests():
            if self.core.is_sleeping():
                raise UnavailableError("the engine sleeps: wake_up() first")
            self.core.wait_for_grammar(_GRAMMAR_WAIT_S)
        return self._step()

    def _step(self) -> list[RequestOutput]:
        self._heap.hold()
        result = self.core.step()
        self.stats = result.stats
        for output in result.outputs:
            if output.error:
                logger.warning("request %s has failed: %s", output.request_id, output.error)
        processed = self._outputs.process(result.outputs)
        self.core.abort(processed.aborts)
        if not self.has_unfinished_requests():
            self._heap.release()
        return processed.outputs

    def abort_request(self, request_ids: Iterable[str]) -> None:
        """Ends requests and frees their blocks. Unknown ids are ignored."""
        for request_id in request_ids:
            self.core.abort(self._outputs.abort(request_id).aborts)

    def has_unfinished_requests(self) -> bool:
        """There is something for `step` to return, now or later."""
        return len(self._outputs) > 0 or bool(self._early)

    def get_num_unfinished_requests(self) -> int:
        return len(self._outputs)

    def reset_prefix_cache(self, reset_running_requests: bool = False) -> bool:
        """Forgets all cached blocks. False while requests run; True preempts them first."""
        return self.core.reset_prefix_cache(reset_running_requests)

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """See `EngineCore.sleep`. Outputs of requests that it waits for come with the next step."""
        while not self.core.sleep(level, mode):
            if not self.core.has_work():
                self.core.wait_for_grammar(_GRAMMAR_WAIT_S)
            self._early += self._step()

    def wake_up(self, tags: Sequence[str] | None = None) -> bool:
        """True: the engine is fully awake. See `EngineCore.wake_up`."""
        return self.core.wake_up(None if tags is None else list(tags))

    def is_sleeping(self) -> bool:
        return self.core.is_sleeping()

    def start_profile(self, prefix: str | None = None) -> None:
        """Begins to record steps. Raises `ValidationError`."""
        self.core.start_profile(prefix)

    def stop_profile(self) -> str:
        """The path of the trace. Raises `ValidationError` when no profile runs."""
        return self.core.stop_profile()

    def shutdown(self) -> None:
        self._grammars.close()
        self._heap.release()
        self.core.shutdown()
