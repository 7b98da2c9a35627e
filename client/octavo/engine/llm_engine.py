"""`LLMEngine`: the engine in this process, step by step, with the calls of vLLM's."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from octavo.engine.arg_utils import EngineArgs
from octavo.engine.metrics import RequestMetrics
from octavo.engine.reasoning import ReasoningRules
from octavo.engine.request_checks import (
    checked_adapter,
    checked_params,
    checked_pooling_params,
)
from octavo.engine.vllm_config import ModelConfig, VllmConfig
from octavo.prompts import PromptRenderer, RenderedPrompt
from octavo.tokenization import TokenizationOptions
from octavo.v1.metrics.reader import Metric
from octavo_protocol.errors import UnavailableError, ValidationError
from octavo_protocol.lora import LoRARequest
from octavo_protocol.pooling import PoolingOutput, PoolingParams, PoolingRequestOutput
from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.engine import llm_engine as runtime
from octavo_runtime.engine.messages import EngineInfo
from octavo_runtime.engine.new_core import is_pooling
from octavo_runtime.engine.pooling_engine import PoolingEngine


class LLMEngine:
    """add_request … step … step until nothing is unfinished. Not thread-safe.

    engine: the runtime's own, which takes token ids. renderer: makes those from prompts.
    Raises `ConfigError` when model, context and memory do not fit together.
    """

    def __init__(self, vllm_config: VllmConfig) -> None:
        self.vllm_config = vllm_config
        self.tokenizer = vllm_config.tokenizer()
        config = vllm_config.engine_config
        self.engine: runtime.LLMEngine | PoolingEngine = (
            PoolingEngine(config)
            if is_pooling(config)
            else runtime.LLMEngine(config, self.tokenizer)
        )
        self._is_shut_down = False
        self.model_config = model_config(vllm_config, self.engine.info)
        self.renderer = PromptRenderer(
            self.tokenizer,
            self.model_config.max_model_len,
            pools=isinstance(self.engine, PoolingEngine),
        )
        self._metrics = RequestMetrics(vllm_config.served_model_name)
        self._reasoning = ReasoningRules.of(vllm_config.structured_outputs_config, self.tokenizer)

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs, **_: Any) -> "LLMEngine":
        """Raises `ValidationError` for an argument, `ConfigError` for the model."""
        return cls(engine_args.create_engine_config())

    @classmethod
    def from_vllm_config(cls, vllm_config: VllmConfig, **_: Any) -> "LLMEngine":
        return cls(vllm_config)

    def add_request(
        self,
        request_id: str,
        prompt: Any,
        params: SamplingParams | PoolingParams,
        arrival_time: float | None = None,
        lora_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        prompt_text: str | None = None,
    ) -> str:
        """Queues one prompt of any form; returns its id.

        arrival_time, trace_headers: for vLLM's tracing; nothing here. Raises `ValidationError` or
        TypeError; then nothing is queued.
        """
        options = TokenizationOptions.parse(tokenization_kwargs)
        rendered = self.renderer.render(prompt, options)
        if prompt_text is not None:
            rendered = dataclasses.replace(rendered, text=prompt_text)
        self.add_rendered(
            request_id, rendered, params, priority=priority, lora_request=lora_request
        )
        return request_id

    def add_rendered(
        self,
        request_id: str,
        prompt: RenderedPrompt,
        params: SamplingParams | PoolingParams,
        *,
        priority: int = 0,
        lora_request: LoRARequest | None = None,
    ) -> None:
        """Queues a prompt of token ids. Raises `UnavailableError` after `shutdown`."""
        if self._is_shut_down:
            raise UnavailableError("the engine was shut down: make another one")
        adapter = checked_adapter(lora_request, self.engine.info)
        if isinstance(self.engine, PoolingEngine):
            self.engine.add_request(
                request_id,
                prompt.token_ids,
                checked_pooling_params(params, self.engine.info),
                token_type_ids=prompt.token_type_ids,
                priority=priority,
                cache_salt=prompt.cache_salt,
                lora_request=adapter,
            )
            return
        self.engine.add_request(
            request_id,
            prompt.token_ids,
            checked_params(params, self.vllm_config.structured_outputs_config),
            prompt=prompt.text,
            priority=priority,
            cache_salt=prompt.cache_salt,
            lora_request=adapter,
            **self._reasoning.arguments(prompt),
        )

    def step(self) -> list[Any]:
        """One step of the engine; what it gave to whom: `RequestOutput`s, by each request's output
        kind, or `PoolingRequestOutput`s where the model pools.
        """
        if isinstance(self.engine, PoolingEngine):
            return [self._pooled(output) for output in self.engine.step()]
        outputs = self.engine.step()
        for output in outputs:
            self._metrics.observe(output)
        return outputs

    def _pooled(
        self, output: PoolingRequestOutput[PoolingOutput]
    ) -> PoolingRequestOutput[PoolingOutput]:
        """With its data as a tensor."""
        self._metrics.observe_pooled(output)
        output.outputs = PoolingOutput(torch.from_numpy(output.outputs.data.copy()))
        return output

    def abort_request(self, request_ids: str | Iterable[str]) -> None:
        """Ends requests and frees what they hold. Unknown ids are ignored."""
        ended = [request_ids] if isinstance(request_ids, str) else list(request_ids)
        self.engine.abort_request(ended)
        self._metrics.forget(ended)

    def has_unfinished_requests(self) -> bool:
        return self.engine.has_unfinished_requests()

    def get_num_unfinished_requests(self) -> int:
        return self.engine.get_num_unfinished_requests()

    def get_tokenizer(self) -> Any:
        """The Hugging Face tokenizer of the model."""
        return self.vllm_config.hf_tokenizer

    def get_metrics(self) -> list[Metric]:
        """The engine's state and what its requests took so far."""
        return self._metrics.read(self.engine.stats)

    def add_lora(self, lora_request: LoRARequest) -> bool:
        """Loads an adapter, if it is not there or is to be loaded again; True.

        Raises `ValidationError`, `AdapterNotFoundError`, `UnavailableError`.
        """
        if (adapter := checked_adapter(lora_request, self.engine.info)) is not None:
            self.engine.adapters.identity(adapter)
        return True

    def remove_lora(self, lora_id: int) -> bool:
        """False: there is no such adapter. Requests that use it go on."""
        known = self.engine.adapters.book.by_number(lora_id)
        if known is not None:
            self.engine.adapters.unload(known.name)
        return known is not None

    def list_loras(self) -> set[int]:
        """Numbers of all adapters that are known."""
        return self.engine.adapters.book.numbers

    def pin_lora(self, lora_id: int) -> bool:
        """Keeps an adapter from eviction. False: there is no such adapter."""
        known = self.engine.adapters.book.by_number(lora_id)
        if known is not None:
            self.engine.adapters.pin(known.name)
        return known is not None

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        """Forgets all cached blocks. False while requests run.

        reset_running_requests: those give their blocks up and compute them again.
        """
        return self.engine.reset_prefix_cache(reset_running_requests)

    def reset_mm_cache(self) -> None:
        """Nothing is cached for images."""

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """Gives up memory; see `LLM.sleep`."""
        self.engine.sleep(level, mode)

    def wake_up(self, tags: Sequence[str] | None = None) -> bool:
        """Takes the memory back; True when nothing sleeps any more."""
        return self.engine.wake_up(tags)

    def is_sleeping(self) -> bool:
        return self.engine.is_sleeping()

    def start_profile(self, profile_prefix: str | None = None) -> None:
        self.engine.start_profile(profile_prefix)

    def stop_profile(self) -> None:
        self.engine.stop_profile()

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """What a method of the worker, or a function of it, returns; one result, rank 0's.

        timeout: nothing here; the worker is in this process.
        """
        worker = self.engine.core.runner
        call = getattr(worker, method, None) if isinstance(method, str) else method
        if not callable(call):
            raise ValidationError(f"the worker has no method {method!r}", parameter="method")
        before = () if isinstance(method, str) else (worker,)
        return [call(*before, *args, **(kwargs or {}))]

    def apply_model(self, func: Callable[[Any], Any]) -> list[Any]:
        """What `func` returns for the model, an `nn.Module`; of several ranks, rank 0's."""
        return [func(self.engine.core.runner.model)]

    def do_log_stats(self) -> None:
        """Statistics are read with `get_metrics`."""

    def shutdown(self) -> None:
        """Gives up the model's memory. May be called again."""
        self._is_shut_down = True
        self.engine.shutdown()


def model_config(config: VllmConfig, info: EngineInfo) -> ModelConfig:
    """What the engine has resolved, as users of vLLM read it."""
    return ModelConfig(
        model=str(config.engine_config.model),
        tokenizer=str(config.tokenizer_folder or ""),
        served_model_name=config.served_model_name,
        max_model_len=info.max_model_len,
        dtype=info.dtype,
        seed=config.engine_config.seed,
        vocab_size=info.vocab_size,
        runner_type=info.runner_type,
        skip_tokenizer_init=config.tokenizer_folder is None,
    )
