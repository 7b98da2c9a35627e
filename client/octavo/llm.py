"""`LLM`: a model in this process, with vLLM's arguments and output objects."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from octavo import offline_beam_search
from octavo.chat_templates import load_chat_template
from octavo.conversations import ChatOptions, as_conversations
from octavo.engine.arg_utils import OFFLINE, EngineArgs
from octavo.engine.llm_engine import LLMEngine
from octavo.engine.request_checks import refuse_missing
from octavo.former_calls import warn_of_beam_search, with_guided_options, with_token_ids
from octavo.pooling_calls import Adapters, PoolingCalls
from octavo.progress import ProgressBar, watched
from octavo.prompts import RenderedPrompt, as_list
from octavo.request_queue import RequestCounter, RequestQueue, per_prompt
from octavo.tokenization import TokenizationOptions
from octavo_protocol.beam_search import BeamSearchOutput, BeamSearchParams
from octavo_protocol.errors import ValidationError
from octavo_protocol.outputs import RequestOutput
from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.engine.pooling_requests import refuse_pooling_model
from octavo_runtime.engine.start_up import start_up_line

Params = SamplingParams | Sequence[SamplingParams] | None
Messages = Sequence[Any]


class LLM(PoolingCalls):
    """A model in this process, which generates or pools.

    Threads may share it: their calls run one after another.

    model: catalogue name, hub name, folder or .gguf file. Other arguments are those of
    `EngineArgs`; one that Octavo does not know is a TypeError that names the nearest, one that it
    knows but cannot honour is a `ValidationError`, and one that vLLM has removed is translated with
    a DeprecationWarning where that is harmless.

    One line on standard error tells how long each stage of the start took.

    With `cluster="http://…"` the model is one that a running platform serves, and the calls are
    durable batches there: see `cluster/llm.py`.

    Raises `ConfigError` when the model cannot be found or does not fit.
    """

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        if not named.get("cluster"):
            return super().__new__(cls)
        from octavo.cluster.llm import ClusterLLM

        return ClusterLLM(*arguments, **named)

    @staticmethod
    def attach(
        job_id: str,
        *,
        cluster: str | bool = True,
        api_key: str | None = None,
        use_tqdm: ProgressBar = True,
    ) -> list[Any]:
        """The outputs of a job that `LLM(cluster=…).submit` or a call that was cut short began."""
        from octavo.cluster.llm import attach

        return attach(job_id, cluster=cluster, api_key=api_key, use_tqdm=use_tqdm)

    def __init__(self, model: str, **arguments: Any) -> None:
        self._start(EngineArgs(model=model, **arguments))

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> "LLM":
        """As the constructor, from arguments that are already together."""
        llm: LLM = cls.__new__(cls)
        llm._start(engine_args)
        return llm

    def _start(self, engine_args: EngineArgs) -> None:
        started = time.perf_counter()
        self.llm_engine = LLMEngine(engine_args.create_engine_config(OFFLINE))
        line = start_up_line(self.llm_engine.engine.info, time.perf_counter() - started)
        print(f"octavo: {line}", file=sys.stderr)
        self.engine_class = LLMEngine
        self.chat_template = self.llm_engine.vllm_config.chat_template
        info = self.llm_engine.engine.info
        self.runner_type = info.runner_type
        self.supported_tasks = info.supported_tasks
        self.pooling_task = None if info.pooling is None else info.pooling.task
        self.request_counter = RequestCounter()
        self._queue = RequestQueue(self.llm_engine, self.request_counter)

    # -- generation -------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Any = None,
        sampling_params: Params = None,
        *,
        use_tqdm: ProgressBar = True,
        lora_request: Adapters = None,
        priority: int | Sequence[int] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        prompt_token_ids: Any = None,
        guided_options_request: Any = None,
    ) -> list[RequestOutput]:
        """Completes every prompt; results are in the order of the prompts.

        prompts: text, token ids, a `TextPrompt` or `TokensPrompt`, or a list of these.
        sampling_params: one for all, or one per prompt; None means the model's defaults.
        lora_request: an adapter for all, or one (or None) per prompt.
        prompt_token_ids, guided_options_request: former keywords, translated.

        Raises `ValidationError` (a ValueError) or TypeError before anything is generated.
        """
        prompts = with_token_ids(prompts, prompt_token_ids)
        if isinstance(sampling_params, BeamSearchParams):
            warn_of_beam_search()
            return self._generate_by_beam_search(prompts, sampling_params, lora_request, use_tqdm)
        if guided_options_request is not None:
            if sampling_params is None:
                sampling_params = self.get_default_sampling_params()
            sampling_params = with_guided_options(sampling_params, guided_options_request)
        request_ids = self.enqueue(
            prompts,
            sampling_params,
            use_tqdm,
            lora_request,
            priority,
            tokenization_kwargs,
            mm_processor_kwargs,
        )
        return self._queue.run(request_ids, use_tqdm)

    def chat(
        self,
        messages: Messages,
        sampling_params: Params = None,
        use_tqdm: ProgressBar = True,
        lora_request: Adapters = None,
        priority: int | Sequence[int] | None = None,
        chat_template: str | None = None,
        chat_template_content_format: Any = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers one conversation (a list of messages) or many (a list of such lists)."""
        request_ids = self.enqueue_chat(
            messages,
            sampling_params,
            use_tqdm,
            lora_request=lora_request,
            priority=priority,
            chat_template=chat_template,
            chat_template_content_format=chat_template_content_format,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            chat_template_kwargs=chat_template_kwargs,
            tokenization_kwargs=tokenization_kwargs,
            mm_processor_kwargs=mm_processor_kwargs,
        )
        return self._queue.run(request_ids, use_tqdm)

    def enqueue(
        self,
        prompts: Any,
        sampling_params: Params = None,
        use_tqdm: ProgressBar = True,
        lora_request: Adapters = None,
        priority: int | Sequence[int] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Queues what `generate` would run; returns the request ids."""
        refuse_pooling_model(self.llm_engine.engine.info)
        refuse_missing(mm_processor_kwargs)
        rendered = self._render(as_list(prompts), tokenization_kwargs, use_tqdm)
        return self._enqueue(rendered, sampling_params, priority, lora_request)

    def enqueue_chat(
        self,
        messages: Messages,
        sampling_params: Params = None,
        use_tqdm: ProgressBar = True,
        lora_request: Adapters = None,
        priority: int | Sequence[int] | None = None,
        chat_template: str | None = None,
        chat_template_content_format: Any = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Queues what `chat` would run; returns the request ids."""
        refuse_pooling_model(self.llm_engine.engine.info)
        refuse_missing(mm_processor_kwargs)
        chat = ChatOptions(
            load_chat_template(chat_template) or self.chat_template,
            chat_template_content_format,
            add_generation_prompt,
            continue_final_message,
            tools,
            chat_template_kwargs,
        )
        options = TokenizationOptions.parse(tokenization_kwargs)
        conversations = as_conversations(messages)
        label = "Rendering conversations"
        rendered = [
            chat.render(conversation, self.renderer, options)
            for conversation in watched(conversations, use_tqdm, len(conversations), label)
        ]
        return self._enqueue(rendered, sampling_params, priority, lora_request)

    def wait_for_completion(
        self, output_type: Any = None, *, use_tqdm: ProgressBar = True
    ) -> list[RequestOutput]:
        """Outputs of everything that was queued, in that order.

        output_type: RequestOutput, the only kind there is, or None.
        """
        kinds = output_type if isinstance(output_type, tuple) else (output_type,)
        if any(kind not in (None, RequestOutput) for kind in kinds):
            raise ValidationError(
                "output_type: requests here give RequestOutputs", parameter="output_type"
            )
        return self._queue.run(None, use_tqdm)

    def beam_search(
        self,
        prompts: Any,
        params: BeamSearchParams,
        lora_request: Adapters = None,
        use_tqdm: ProgressBar = False,
        concurrency_limit: int | None = None,
        priority: int | Sequence[int] | None = None,
    ) -> list[BeamSearchOutput]:
        """The `params.beam_width` best continuations of each prompt, best first.

        concurrency_limit: how many prompts are searched at a time; None: all.
        """
        refuse_pooling_model(self.llm_engine.engine.info)
        if not isinstance(params, BeamSearchParams):
            raise TypeError(f"expected BeamSearchParams, got {type(params).__name__}")
        originals = as_list(prompts)
        return offline_beam_search.search(
            self.llm_engine,
            self._queue,
            self._render(originals, None, False),
            originals,
            params,
            priorities=per_prompt("priority", priority, len(originals), 0),
            adapters=per_prompt("lora_request", lora_request, len(originals), None),
            concurrency_limit=concurrency_limit,
            use_tqdm=use_tqdm,
        )

    # -- inside -----------------------------------------------------------------------------------

    def _render(
        self, prompts: list[Any], tokenization_kwargs: Any, use_tqdm: ProgressBar
    ) -> list[RenderedPrompt]:
        options = TokenizationOptions.parse(tokenization_kwargs)
        return [
            self.renderer.render(prompt, options)
            for prompt in watched(prompts, use_tqdm, len(prompts), "Rendering prompts")
        ]

    def _enqueue(
        self,
        prompts: list[RenderedPrompt],
        sampling_params: Params,
        priority: int | Sequence[int] | None,
        lora_request: Adapters,
    ) -> list[str]:
        default = self.get_default_sampling_params()
        return self._queue.add(
            prompts,
            per_prompt("sampling_params", sampling_params, len(prompts), default),
            per_prompt("priority", priority, len(prompts), 0),
            per_prompt("lora_request", lora_request, len(prompts), None),
        )

    def _generate_by_beam_search(
        self, prompts: Any, params: BeamSearchParams, lora_request: Adapters, use_tqdm: ProgressBar
    ) -> list[RequestOutput]:
        originals = as_list(prompts)
        rendered = self._render(originals, None, False)
        outputs = self.beam_search(originals, params, lora_request, use_tqdm)
        return [
            offline_beam_search.as_request_output(output, str(index), prompt)
            for index, (output, prompt) in enumerate(zip(outputs, rendered, strict=True))
        ]
