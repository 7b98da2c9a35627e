"""`LLM`: generation in this process, with vLLM's arguments and output objects."""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError as PydanticValidationError

from octavo.prompts import PromptType, RenderedPrompt, as_list, render
from octavo_protocol.errors import ValidationError
from octavo_protocol.openai import ChatMessage, validation_error
from octavo_protocol.outputs import RequestOutput
from octavo_protocol.sampling_params import RequestOutputKind, SamplingParams
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.config import DTypeName, EngineConfig
from octavo_runtime.engine.default_params import default_sampling_params
from octavo_runtime.engine.llm_engine import LLMEngine
from octavo_runtime.models.source import resolve_model

# vLLM's names for dtypes.
_DTYPES: dict[str, DTypeName] = {
    "auto": "auto",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
    "float32": "float32",
    "float": "float32",
}
# Arguments of vLLM that are known, with the values that change nothing here; None: any does not.
_NEUTRAL: dict[str, tuple[Any, ...] | None] = {
    "runner": ("auto", "generate"),
    "convert": ("auto", "none"),
    "task": ("auto", "generate"),
    "tensor_parallel_size": (1,),
    "pipeline_parallel_size": (1,),
    "data_parallel_size": (1,),
    "quantization": (None,),
    "trust_remote_code": (False,),
    "tokenizer_mode": ("auto", "hf"),
    "enable_lora": (False,),
    "kv_cache_dtype": ("auto",),
    "enable_chunked_prefill": (None, True),
    "gpu_memory_utilization": None,  # any: for GPUs
    "enforce_eager": None,  # any: nothing is captured on a CPU
    "disable_log_stats": None,
    "swap_space": None,  # preemption recomputes
}
ProgressBar = bool | Callable[..., Any]


class LLM:
    """A model in this process.

    model: catalogue name, hub name, folder or .gguf file. Other arguments are vLLM's; one that
    Octavo does not know is a TypeError that names the nearest, and one that it knows but cannot
    honour is a `ValidationError`.

    Raises `ConfigError` when the model cannot be found or does not fit.
    """

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        revision: str | None = None,
        dtype: str = "auto",
        seed: int = 0,
        max_model_len: int | None = None,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 512,
        block_size: int = 16,
        enable_prefix_caching: bool = True,
        kv_cache_memory_bytes: int | None = None,
        num_gpu_blocks_override: int | None = None,
        long_prefill_token_threshold: int = 0,
        scheduling_policy: str = "fcfs",
        load_format: str = "auto",
        chat_template: str | None = None,
        num_threads: int | None = None,
        **others: Any,
    ) -> None:
        _check_other_arguments(others)
        folder = resolve_model(model, revision=revision)
        tokenizer_folder = resolve_model(tokenizer) if tokenizer else folder
        self._tokenizer_folder = tokenizer_folder
        self._chat_template = _template_text(chat_template)
        self._default_params = default_sampling_params(folder)
        config = EngineConfig(
            model=folder,
            dtype=_choice("dtype", dtype, _DTYPES),
            seed=seed,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max(max_num_batched_tokens, max_num_seqs),
            block_size=block_size,
            enable_prefix_caching=enable_prefix_caching,
            kv_cache_memory_bytes=kv_cache_memory_bytes,
            num_gpu_blocks_override=num_gpu_blocks_override,
            long_prefill_token_threshold=long_prefill_token_threshold,
            scheduling_policy=_choice(
                "scheduling_policy", scheduling_policy, {"fcfs": "fcfs", "priority": "priority"}
            ),
            load_format=_choice(
                "load_format",
                load_format,
                {"auto": "auto", "safetensors": "auto", "dummy": "dummy"},
            ),
            num_threads=num_threads,
        )
        self.llm_engine = LLMEngine(config, Tokenizer.from_folder(tokenizer_folder))
        self._num_requests = 0

    def generate(
        self,
        prompts: PromptType | Sequence[PromptType],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: ProgressBar = True,
        lora_request: Any = None,
        priority: int | Sequence[int] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Completes every prompt; results are in the order of the prompts.

        sampling_params: one for all, or one per prompt; None means the model's defaults.
        Raises `ValidationError` (a ValueError) before anything is generated.
        """
        _refuse_what_is_not_there(lora_request, tokenization_kwargs, mm_processor_kwargs)
        rendered = [render(prompt, self._tokenizer) for prompt in as_list(prompts)]
        return self._run(rendered, sampling_params, priority, use_tqdm)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: ProgressBar = True,
        lora_request: Any = None,
        priority: int | Sequence[int] | None = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers one conversation (a list of messages) or many (a list of such lists)."""
        _refuse_what_is_not_there(lora_request, tokenization_kwargs, mm_processor_kwargs)
        if chat_template_content_format not in ("auto", "string"):
            raise ValidationError(
                "chat_template_content_format must be 'auto' or 'string', got "
                f"{chat_template_content_format!r}",
                parameter="chat_template_content_format",
            )
        if add_generation_prompt and continue_final_message:
            raise ValidationError(
                "continue_final_message=True needs add_generation_prompt=False",
                parameter="continue_final_message",
            )
        template = _template_text(chat_template) or self._chat_template
        rendered = []
        for conversation in _conversations(messages):
            text = self._tokenizer.apply_chat_template(
                [_template_input(message) for message in conversation],
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                **(chat_template_kwargs or {}),
            )
            token_ids = self._tokenizer.encode(text, add_special_tokens=False)
            rendered.append(RenderedPrompt(token_ids, text))
        return self._run(rendered, sampling_params, priority, use_tqdm)

    def get_tokenizer(self) -> Any:
        """The Hugging Face tokenizer of the model."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._tokenizer_folder)

    def get_default_sampling_params(self) -> SamplingParams:
        """The model's own defaults, from its generation_config.json."""
        return self._default_params.clone()

    def reset_prefix_cache(self) -> bool:
        """Forgets all cached blocks."""
        return self.llm_engine.reset_prefix_cache()

    def shutdown(self) -> None:
        """Gives up the model's memory."""
        self.llm_engine.shutdown()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()

    @property
    def _tokenizer(self) -> Tokenizer:
        assert self.llm_engine.tokenizer is not None
        return self.llm_engine.tokenizer

    def _run(
        self,
        prompts: Sequence[RenderedPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: int | Sequence[int] | None,
        use_tqdm: ProgressBar,
    ) -> list[RequestOutput]:
        params = _per_prompt("sampling_params", sampling_params, len(prompts), self._default_params)
        priorities = _per_prompt("priority", priority, len(prompts), 0)
        request_ids: list[str] = []
        try:
            for prompt, each, rank in zip(prompts, params, priorities, strict=True):
                request_id = str(self._num_requests)
                final_only = each.clone()
                final_only.output_kind = RequestOutputKind.FINAL_ONLY
                self.llm_engine.add_request(
                    request_id,
                    prompt.token_ids,
                    final_only,
                    prompt=prompt.text,
                    priority=rank,
                    cache_salt=prompt.cache_salt,
                )
                self._num_requests += 1
                request_ids.append(request_id)
            outputs = self._finish(len(prompts), use_tqdm)
        except BaseException:  # also Ctrl-C: nothing may stay queued
            self.llm_engine.abort_request(request_ids)
            raise
        return [outputs[request_id] for request_id in request_ids]

    def _finish(self, num_requests: int, use_tqdm: ProgressBar) -> dict[str, RequestOutput]:
        outputs: dict[str, RequestOutput] = {}
        bar = _progress_bar(use_tqdm, num_requests)
        num_input = num_output = 0
        try:
            while self.llm_engine.has_unfinished_requests():
                for output in self.llm_engine.step():
                    outputs[output.request_id] = output
                    num_input += len(output.prompt_token_ids or ())
                    num_output += sum(len(o.token_ids) for o in output.outputs)
                    if bar is not None:
                        elapsed = bar.format_dict["elapsed"] or 1e-9
                        bar.postfix = (
                            f"est. speed input: {num_input / elapsed:.2f} toks/s, "
                            f"output: {num_output / elapsed:.2f} toks/s"
                        )
                        bar.update(1)
        finally:
            if bar is not None:
                bar.close()
        return outputs


def _progress_bar(use_tqdm: ProgressBar, total: int) -> Any:
    if use_tqdm is False:
        return None
    if use_tqdm is True:
        from tqdm.auto import tqdm
    else:
        tqdm = use_tqdm
    return tqdm(total=total, desc="Processed prompts", dynamic_ncols=True)


def _per_prompt(name: str, value: Any, count: int, default: Any) -> list[Any]:
    """`value` for each prompt: one for all, or a sequence of the right length."""
    if value is None:
        value = default
    if not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise ValidationError(
            f"{len(value)} {name} for {count} prompts: give one, or one per prompt", parameter=name
        )
    return list(value)


def _conversations(messages: Any) -> list[Any]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise TypeError("messages must be a list of messages, or a list of such lists")
    return [messages] if isinstance(messages[0], Mapping) else list(messages)


def _template_input(message: Any) -> dict[str, Any]:
    try:
        return ChatMessage.model_validate(message).as_template_input()
    except PydanticValidationError as error:
        raise validation_error(error) from error


def _template_text(chat_template: str | None) -> str | None:
    """A template given as text, or as the path of a file."""
    if chat_template is None or any(mark in chat_template for mark in "{}\n"):
        return chat_template
    path = Path(chat_template)
    if not path.is_file():
        raise ValidationError(
            f"chat_template {chat_template!r} is neither a file nor a template",
            parameter="chat_template",
        )
    return path.read_text(encoding="utf-8")


def _refuse_what_is_not_there(
    lora_request: Any, tokenization_kwargs: Any, mm_processor_kwargs: Any
) -> None:
    if lora_request is not None:
        raise ValidationError("LoRA adapters are not supported yet", parameter="lora_request")
    for name, value in (
        ("tokenization_kwargs", tokenization_kwargs),
        ("mm_processor_kwargs", mm_processor_kwargs),
    ):
        if value:
            raise ValidationError(f"{name} is not supported yet; leave it out", parameter=name)


def _choice(name: str, value: str, choices: Mapping[str, Any]) -> Any:
    if value not in choices:
        raise ValidationError(
            f"{name} must be one of {', '.join(choices)}, got {value!r}", parameter=name
        )
    return choices[value]


def _check_other_arguments(others: Mapping[str, Any]) -> None:
    for name, value in others.items():
        if name in _NEUTRAL:
            allowed = _NEUTRAL[name]
            if allowed is not None and value not in allowed:
                raise ValidationError(f"{name}={value!r} is not supported yet", parameter=name)
            continue
        known = [*inspect.signature(LLM.__init__).parameters, *_NEUTRAL]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TypeError(f"LLM() got an unexpected keyword argument {name!r}{hint}")
