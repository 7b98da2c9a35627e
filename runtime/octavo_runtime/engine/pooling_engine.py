"""The pooling engine and its API side in one process, synchronously: for `LLM` and for tests."""

import time
from collections.abc import Iterable, Sequence

from octavo_protocol.lora import LoRARequest
from octavo_protocol.pooling import PoolingOutput, PoolingParams, PoolingRequestOutput
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.local_engine import LocalEngine
from octavo_runtime.engine.messages import PoolingRequest, StepOutputs
from octavo_runtime.engine.pooling_core import PoolingCore
from octavo_runtime.engine.pooling_requests import pooling_output, pooling_request, unfinished_error

Pooled = PoolingRequestOutput[PoolingOutput]


class PoolingEngine(LocalEngine[PoolingCore, Pooled]):
    """add_request … step … step until nothing is unfinished. Not thread-safe."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(PoolingCore(config))
        self._unfinished: dict[str, tuple[PoolingRequest, float]] = {}  # when it was queued

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: PoolingParams,
        *,
        token_type_ids: Sequence[int] = (),
        priority: int = 0,
        cache_salt: str = "",
        lora_request: LoRARequest | None = None,
    ) -> None:
        """Queues a request. Raises `ValidationError`; then nothing is queued.

        The parameters are those of `AsyncLLM.encode`.
        """
        request = pooling_request(
            self.info,
            request_id,
            prompt_token_ids,
            params,
            token_type_ids=token_type_ids,
            priority=priority,
            cache_salt=cache_salt,
        )
        if request_id in self._unfinished:
            raise unfinished_error(request_id)
        adapter = self._adapter(lora_request)
        self._unfinished[request_id] = (request, time.monotonic())
        self._submit([request], lora_request, adapter)

    def abort_request(self, request_ids: Iterable[str]) -> None:
        ids = list(request_ids)
        for request_id in ids:
            self._unfinished.pop(request_id, None)
        self.core.abort(ids)

    def get_num_unfinished_requests(self) -> int:
        return len(self._unfinished)

    def _is_unfinished(self, engine_request_id: str) -> bool:
        return engine_request_id in self._unfinished

    def _taken(self, step: StepOutputs) -> list[Pooled]:
        """Aborted requests have no output."""
        ended_ts = time.monotonic()
        outputs = []
        for result in step.pooled:
            request, queued_ts = self._unfinished.pop(result.request_id)
            if result.finish_reason != "abort":
                outputs.append(pooling_output(request, result, queued_ts, ended_ts))
        return outputs
