"""The engine and its API side in one process, synchronously: for `LLM` and for tests."""

from collections.abc import Iterable, Sequence

from octavo_protocol.outputs import RequestOutput
from octavo_protocol.sampling_params import SamplingParams
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.engine_core import EngineCore
from octavo_runtime.engine.input_processor import InputProcessor
from octavo_runtime.engine.messages import EngineInfo, EngineStats
from octavo_runtime.engine.output_processor import OutputProcessor


class LLMEngine:
    """add_request … step … step until nothing is unfinished. Not thread-safe.

    tokenizer: None for token ids in and out only.
    """

    def __init__(self, config: EngineConfig, tokenizer: Tokenizer | None) -> None:
        self.core = EngineCore(config)
        self.tokenizer = tokenizer
        self.stats = EngineStats()
        self._inputs = InputProcessor(
            self.core.info, tokenizer, logits_processors=config.logits_processors
        )
        self._outputs = OutputProcessor(tokenizer)

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
    ) -> None:
        """Queues a request. Raises `ValidationError`; then nothing is queued."""
        children = self._inputs.process(
            request_id, prompt_token_ids, params, priority=priority, cache_salt=cache_salt
        )
        self._outputs.add(request_id, children, params, prompt=prompt)
        for child in children:
            self.core.add_request(child)

    def step(self) -> list[RequestOutput]:
        """One step of the engine; what it gave to whom."""
        result = self.core.step()
        self.stats = result.stats
        processed = self._outputs.process(result.outputs)
        self.core.abort(processed.aborts)
        return processed.outputs

    def abort_request(self, request_ids: Iterable[str]) -> None:
        """Ends requests and frees their blocks. Unknown ids are ignored."""
        for request_id in request_ids:
            self.core.abort(self._outputs.abort(request_id))

    def has_unfinished_requests(self) -> bool:
        return len(self._outputs) > 0

    def get_num_unfinished_requests(self) -> int:
        return len(self._outputs)

    def reset_prefix_cache(self) -> bool:
        """Forgets all cached blocks. False while requests run."""
        return self.core.reset_prefix_cache()

    def shutdown(self) -> None:
        self.core.shutdown()
