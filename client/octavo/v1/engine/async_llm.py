"""`AsyncLLMEngine` (`AsyncLLM`): the engine in a process of its own, with the calls of vLLM's."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import torch

from octavo.engine.arg_utils import EngineArgs
from octavo.engine.llm_engine import model_config
from octavo.engine.reasoning import ReasoningRules
from octavo.engine.request_checks import (
    checked_adapter,
    checked_params,
    refuse_profile_options,
)
from octavo.engine.vllm_config import ModelConfig, VllmConfig
from octavo.prompts import PromptRenderer
from octavo.tokenization import TokenizationOptions
from octavo_protocol.errors import GenerationError, ValidationError
from octavo_protocol.lora import LoRARequest
from octavo_protocol.outputs import RequestOutput
from octavo_protocol.pooling import PoolingOutput, PoolingParams, PoolingRequestOutput
from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.engine import async_llm as runtime


class AsyncLLM:
    """Requests in, `RequestOutput`s or `PoolingRequestOutput`s out, many at a time.

    Made inside a running event loop, it begins to load at once; else with its first call. It
    belongs to the loop in which it began.
    """

    def __init__(self, vllm_config: VllmConfig) -> None:
        self.vllm_config = vllm_config
        self.tokenizer = vllm_config.tokenizer()
        if self.tokenizer is None:
            raise ValidationError(
                "skip_tokenizer_init is for LLM and LLMEngine; leave it out here",
                parameter="skip_tokenizer_init",
            )
        _refuse_local_classes(vllm_config.engine_config.logits_processors)
        self._reasoning = ReasoningRules.of(vllm_config.structured_outputs_config, self.tokenizer)
        self._engine: runtime.AsyncLLM | None = None
        self._stopped = False
        with contextlib.suppress(RuntimeError):  # no loop runs yet
            asyncio.get_running_loop()
            self._begun()

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs, **_: Any) -> "AsyncLLM":
        """Raises `ValidationError` for an argument, `ConfigError` for a model that is not there."""
        return cls(engine_args.create_engine_config())

    @classmethod
    def from_vllm_config(cls, vllm_config: VllmConfig, **_: Any) -> "AsyncLLM":
        return cls(vllm_config)

    # -- requests ---------------------------------------------------------------------------------

    async def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        prompt_text: str | None = None,
        lora_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        data_parallel_rank: int | None = None,
        session_id: str | None = None,
        kv_hints: Any = None,
        reasoning_ended: bool | None = None,
        reasoning_parser_kwargs: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """Yields outputs as `sampling_params.output_kind` says, the last one with `finished`.

        Closing or cancelling the iterator ends the request in the engine. trace_headers,
        session_id, kv_hints and data_parallel_rank 0 are hints that change nothing here.

        Raises `ValidationError` or TypeError for the request, `GenerationError` when the engine
        dies, `ConfigError` when it could not start.
        """
        if isinstance(prompt, AsyncIterator):
            raise ValidationError("prompts that stream in are not supported", parameter="prompt")
        if data_parallel_rank not in (None, 0):
            raise ValidationError(
                f"data_parallel_rank {data_parallel_rank}: there is one engine",
                parameter="data_parallel_rank",
            )
        params = checked_params(sampling_params, self.vllm_config.structured_outputs_config)
        options = TokenizationOptions.parse(tokenization_kwargs)
        engine = await self._ready()
        adapter = checked_adapter(lora_request, await engine.wait_ready())
        rendered = (await self.renderer()).render(prompt, options)
        if prompt_text is not None:
            rendered = dataclasses.replace(rendered, text=prompt_text)
        outputs = engine.generate(
            rendered.token_ids,
            params,
            request_id,
            prompt_text=rendered.text,
            priority=priority,
            cache_salt=rendered.cache_salt,
            lora_request=adapter,
            **self._reasoning.arguments(rendered, has_ended=bool(reasoning_ended)),
        )
        async with contextlib.aclosing(outputs) as stream:  # type: ignore[type-var]
            async for output in stream:
                yield output

    async def encode(
        self,
        prompt: Any,
        pooling_params: PoolingParams,
        request_id: str,
        *,
        lora_request: Any = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[PoolingRequestOutput[PoolingOutput]]:
        """Yields one output, with the prompt's tensor. `pooling_params.task` None is the model's
        default one.

        Raises as `generate` does; `ValidationError` where the model generates.
        """
        options = TokenizationOptions.parse(tokenization_kwargs)
        engine = await self._ready()
        adapter = checked_adapter(lora_request, await engine.wait_ready())
        rendered = (await self.renderer()).render(prompt, options)
        output = await engine.encode(
            rendered.token_ids,
            pooling_params,
            request_id,
            token_type_ids=rendered.token_type_ids,
            priority=priority,
            cache_salt=rendered.cache_salt,
            lora_request=adapter,
        )
        output.outputs = PoolingOutput(torch.from_numpy(output.outputs.data.copy()))
        yield output

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """Ends requests and frees what they hold. Unknown ids are ignored."""
        engine = await self._ready()
        for each in [request_id] if isinstance(request_id, str) else list(request_id):
            engine.abort(each)

    # -- state ------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """The engine loads or serves."""
        return self._engine is not None and self._engine.is_healthy and not self._stopped

    @property
    def is_stopped(self) -> bool:
        return self._stopped

    @property
    def errored(self) -> bool:
        """The engine has died."""
        return self._engine is not None and not self._stopped and not self._engine.is_healthy

    @property
    def dead_error(self) -> GenerationError:
        return GenerationError("the engine process has ended")

    async def check_health(self) -> None:
        """Raises `GenerationError` when the engine is dead."""
        if self.errored:
            raise self.dead_error

    async def get_model_config(self) -> ModelConfig:
        return model_config(self.vllm_config, await (await self._ready()).wait_ready())

    async def renderer(self) -> PromptRenderer:
        """Makes token ids from prompts."""
        info = await (await self._ready()).wait_ready()
        return PromptRenderer(
            self.tokenizer, info.max_model_len, pools=info.runner_type == "pooling"
        )

    async def get_tokenizer(self) -> Any:
        """The Hugging Face tokenizer of the model."""
        return await asyncio.to_thread(lambda: self.vllm_config.hf_tokenizer)

    async def is_tracing_enabled(self) -> bool:
        return False

    async def do_log_stats(self) -> None:
        """Statistics are not logged."""

    # -- control ----------------------------------------------------------------------------------

    async def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        """Forgets all cached blocks. False while requests run."""
        return await (await self._ready()).reset_prefix_cache(reset_running_requests)

    async def reset_mm_cache(self) -> None:
        """Nothing is cached for images."""

    async def reset_encoder_cache(self) -> None:
        """There are no encoders."""

    async def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """As `LLM.sleep`. Levels 1 and 2 need `enable_sleep_mode=True`."""
        await (await self._ready()).sleep(level, mode)

    async def wake_up(self, tags: Sequence[str] | None = None) -> bool:
        """True when nothing sleeps any more."""
        return await (await self._ready()).wake_up(tags)

    async def is_sleeping(self) -> bool:
        return await (await self._ready()).is_sleeping()

    async def start_profile(
        self,
        profile_prefix: str | None = None,
        *,
        delay_iterations: int | None = None,
        max_iterations: int | None = None,
        profiler_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """As `LLM.start_profile`."""
        refuse_profile_options(
            delay_iterations=delay_iterations,
            max_iterations=max_iterations,
            profiler_kwargs=profiler_kwargs,
        )
        await (await self._ready()).start_profile(profile_prefix)

    async def stop_profile(self) -> None:
        """Writes the trace."""
        await (await self._ready()).stop_profile()

    async def pause_generation(self, mode: str = "abort", clear_cache: bool = True) -> None:
        """Runs no requests until `resume_generation`. mode: what becomes of those in flight."""
        engine = await self._ready()
        await engine.sleep(0, mode)
        if clear_cache:
            await engine.reset_prefix_cache(True)

    async def resume_generation(self) -> None:
        await (await self._ready()).wake_up()

    async def is_paused(self) -> bool:
        return await self.is_sleeping()

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        """Loads an adapter, if it is not there or is to be loaded again; True.

        Raises `ValidationError`, `AdapterNotFoundError`, `UnavailableError`.
        """
        engine = await self._ready()
        adapter = checked_adapter(lora_request, await engine.wait_ready())
        async with engine.adapters.using(adapter):
            return True

    async def remove_lora(self, lora_id: int) -> bool:
        """False: there is no such adapter. Requests that use it go on."""
        adapters = (await self._ready()).adapters
        known = adapters.book.by_number(lora_id)
        if known is not None:
            await adapters.unload(known.name)
        return known is not None

    async def list_loras(self) -> set[int]:
        """Numbers of all adapters that are known."""
        return (await self._ready()).adapters.book.numbers

    async def pin_lora(self, lora_id: int) -> bool:
        """Keeps an adapter from eviction. False: there is no such adapter."""
        adapters = (await self._ready()).adapters
        known = adapters.book.by_number(lora_id)
        if known is not None:
            await adapters.pin(known.name)
        return known is not None

    async def collective_rpc(self, method: Any, *_: Any, **__: Any) -> NoReturn:
        """Raises `ValidationError`: the worker is in another process."""
        raise ValidationError(
            "the worker is in a process of its own: use LLM.collective_rpc", parameter="method"
        )

    def shutdown(self, timeout: float | None = None) -> Awaitable[None]:
        """Stops the engine; requests in flight fail with `UnavailableError`.

        It goes on by itself while the loop runs; awaiting what it returns waits for its end.
        """
        self._stopped = True
        return asyncio.ensure_future(self._shutdown())

    async def _shutdown(self) -> None:
        if self._engine is not None:
            await self._engine.shutdown()

    async def __aenter__(self) -> "AsyncLLM":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()

    def _begun(self) -> runtime.AsyncLLM:
        if self._engine is None:
            assert self.tokenizer is not None
            self._engine = runtime.AsyncLLM.start(self.vllm_config.engine_config, self.tokenizer)
        return self._engine

    async def _ready(self) -> runtime.AsyncLLM:
        engine = self._begun()
        await engine.wait_ready()
        if self.errored:
            raise self.dead_error
        return engine


AsyncLLMEngine = AsyncLLM


def _refuse_local_classes(references: Iterable[str]) -> None:
    for each in references:
        if each.startswith("__main__:"):
            raise ValidationError(
                f"logits_processors: {each} is defined in the script that runs, which the engine "
                "process cannot import; put it into a module",
                parameter="logits_processors",
            )
