"""The engine and its API side in one process, synchronously: for `LLM` and for tests."""

import logging
from collections.abc import Iterable, Sequence

from octavo_protocol.lora import LoRARequest
from octavo_protocol.outputs import RequestOutput
from octavo_protocol.sampling_params import SamplingParams
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.engine_core import EngineCore
from octavo_runtime.engine.input_processor import InputProcessor
from octavo_runtime.engine.local_engine import LocalEngine
from octavo_runtime.engine.messages import StepOutputs
from octavo_runtime.engine.output_processor import OutputProcessor
from octavo_runtime.structured_outputs.request import RequestGrammars

logger = logging.getLogger(__name__)

_GRAMMAR_WAIT_S = 1.0


class LLMEngine(LocalEngine[EngineCore, RequestOutput]):
    """add_request … step … step until nothing is unfinished. Not thread-safe.

    tokenizer: None for token ids in and out only.
    """

    def __init__(self, config: EngineConfig, tokenizer: Tokenizer | None) -> None:
        super().__init__(EngineCore(config))
        self.tokenizer = tokenizer
        self._grammars = RequestGrammars(
            tokenizer, self.core.info.vocab_size, self.core.info.eos_token_ids
        )
        self._inputs = InputProcessor(
            self.core.info, tokenizer, logits_processors=config.logits_processors
        )
        self._outputs = OutputProcessor(tokenizer)

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
        lora_request: LoRARequest | None = None,
    ) -> None:
        """Queues a request. Raises `ValidationError`; then nothing is queued.

        reasoning_end_token_ids, is_reasoning: see `EngineRequest`. visible_special_ids: special
        tokens that show in the text even where special tokens are skipped. lora_request: an
        adapter, which is loaded where it is not yet; raises what `LocalAdapters.load` raises.
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
        adapter = self._adapter(lora_request)
        self._outputs.add(
            request_id,
            children,
            params,
            prompt=prompt,
            visible_special_ids=visible_special_ids,
            lora_request=lora_request,
        )
        self._submit(children, lora_request, adapter)

    def abort_request(self, request_ids: Iterable[str]) -> None:
        """Ends requests and frees their blocks. Unknown ids are ignored."""
        for request_id in request_ids:
            self.core.abort(self._outputs.abort(request_id).aborts)

    def get_num_unfinished_requests(self) -> int:
        return len(self._outputs)

    def shutdown(self) -> None:
        self._grammars.close()
        super().shutdown()

    def _is_unfinished(self, engine_request_id: str) -> bool:
        return self._outputs.is_running(engine_request_id)

    def _wait(self) -> None:
        self.core.wait_for_grammar(_GRAMMAR_WAIT_S)

    def _taken(self, step: StepOutputs) -> list[RequestOutput]:
        for output in step.outputs:
            if output.error:
                logger.warning("request %s has failed: %s", output.request_id, output.error)
        processed = self._outputs.process(step.outputs)
        self.core.abort(processed.aborts)
        return processed.outputs
