"""What an `LLM` says about its engine, and does to it, beside generating."""

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from octavo.engine.llm_engine import LLMEngine
from octavo.engine.request_checks import refuse_profile_options
from octavo.engine.vllm_config import ModelConfig
from octavo.prompts import PromptRenderer
from octavo.v1.metrics.reader import Metric
from octavo_protocol.sampling_params import SamplingParams


class EngineAccess:
    """Base of `LLM`, which makes the engine."""

    llm_engine: LLMEngine

    @property
    def model_config(self) -> ModelConfig:
        return self.llm_engine.model_config

    @property
    def renderer(self) -> PromptRenderer:
        return self.llm_engine.renderer

    input_processor = renderer

    @property
    def default_sampling_params(self) -> SamplingParams:
        return self.get_default_sampling_params()

    def get_tokenizer(self) -> Any:
        """The Hugging Face tokenizer of the model."""
        return self.llm_engine.get_tokenizer()

    def get_default_sampling_params(self) -> SamplingParams:
        """The model's own defaults, from its generation_config.json."""
        return self.llm_engine.vllm_config.default_sampling_params.clone()

    def get_metrics(self) -> list[Metric]:
        """The engine's state and what its requests took so far, under vLLM's names."""
        return self.llm_engine.get_metrics()

    def get_world_size(self, include_dp: bool = True) -> int:
        """Devices that the model runs on."""
        return 1

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        """Forgets all cached blocks. False while requests run.

        reset_running_requests: those give their blocks up and compute them again.
        """
        return self.llm_engine.reset_prefix_cache(reset_running_requests, reset_connector)

    def reset_mm_cache(self) -> None:
        """Nothing is cached for images."""

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """Pauses the engine. level: 0 = only that; 1 = also gives up the KV cache; 2 = the weights
        too. mode: what becomes of unfinished requests: abort, wait or keep. Levels 1 and 2 need
        `enable_sleep_mode=True`.
        """
        self.llm_engine.sleep(level, mode)

    def wake_up(self, tags: Sequence[str] | None = None) -> bool:
        """Undoes `sleep`. tags: only these of weights, kv_cache, scheduling.

        True when nothing sleeps any more.
        """
        return self.llm_engine.wake_up(tags)

    def start_profile(
        self,
        profile_prefix: str | None = None,
        *,
        delay_iterations: int | None = None,
        max_iterations: int | None = None,
        profiler_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts torch's profiler. Needs `profiler_config`.

        Raises `ValidationError` for delay_iterations, max_iterations and profiler_kwargs: every
        step until `stop_profile` is recorded.
        """
        refuse_profile_options(
            delay_iterations=delay_iterations,
            max_iterations=max_iterations,
            profiler_kwargs=profiler_kwargs,
        )
        self.llm_engine.start_profile(profile_prefix)

    def stop_profile(self) -> None:
        """Writes the trace."""
        self.llm_engine.stop_profile()

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """What a method of the worker, or `method(worker, ...)`, returns: one result per worker."""
        return self.llm_engine.collective_rpc(method, timeout, args, kwargs)

    def apply_model(self, func: Callable[[Any], Any]) -> list[Any]:
        """What `func(model)` returns: one result per worker."""
        return self.llm_engine.apply_model(func)

    def shutdown(self) -> None:
        """Gives up the model's memory."""
        self.llm_engine.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        """The tree of the model's modules."""
        [tree] = self.apply_model(repr)
        return str(tree)
