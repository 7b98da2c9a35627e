"""What every generating route does with a request before it becomes a job."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from octavo_protocol.errors import ValidationError
from octavo_protocol.openai import ChatCompletionRequest, CompletionRequest
from octavo_protocol.sampling_params import RequestOutputKind, SamplingParams
from octavo_runtime.server.state import ServerState

# Longer texts are tokenized in a thread: on the event loop they would delay other streams.
INLINE_CHARS = 20_000
# Every sample is a request of its own to the engine, with token ids of its own.
MAX_COPIED = 2**23
_T = TypeVar("_T")


async def maybe_in_thread(num_chars: int, work: Callable[[], _T]) -> _T:
    """The result of `work`, which tokenizes `num_chars` characters."""
    if num_chars < INLINE_CHARS:
        return work()
    return await asyncio.to_thread(work)


def params_of(
    state: ServerState,
    body: ChatCompletionRequest | CompletionRequest,
    *,
    default_max_tokens: int | None,
) -> SamplingParams:
    """The sampling parameters of `body`, within the server's limits. Raises `ValidationError`."""
    defaults = state.llm.default_sampling_params
    params = body.sampling_params(defaults, max_tokens=default_max_tokens)
    cap = state.options.override_max_tokens
    if cap is not None and (params.max_tokens is None or params.max_tokens > cap):
        params.max_tokens = cap
        params.min_tokens = min(params.min_tokens, cap)
    if params.structured_outputs is not None:
        params.structured_outputs = state.options.constraint(params.structured_outputs)
    params.output_kind = RequestOutputKind.DELTA if body.stream else RequestOutputKind.FINAL_ONLY
    return params


class Templated(Protocol):
    """A request that may bring a template of its own."""

    chat_template: str | None
    chat_template_kwargs: dict[str, Any] | None


def check_template(state: ServerState, body: Templated) -> None:
    """Raises `ValidationError` for a template of the request's own on a server that takes none."""
    is_trusted = state.options.trust_request_chat_template
    in_kwargs = "chat_template" in (body.chat_template_kwargs or {})
    if (body.chat_template is not None or in_kwargs) and not is_trusted:
        raise ValidationError(
            "this server takes no chat templates from requests; leave chat_template out, or start "
            "the server with --trust-request-chat-template",
            parameter="chat_template",
        )


def check_characters(
    state: ServerState, body: ChatCompletionRequest | CompletionRequest, prompts: Iterable[str]
) -> None:
    """Raises `ValidationError` for prompts that are too long even if every token were the longest:
    megabytes of text are refused before they are tokenized.
    """
    limit = state.check_accepts().max_model_len
    max_chars = limit * state.llm.tokenizer.max_token_chars
    num_chars = max(map(len, prompts), default=0)
    if num_chars > max_chars and body.truncate_prompt_tokens is None:
        raise ValidationError(
            f"the prompt has {num_chars} characters; this model's context of {limit} tokens holds "
            f"at most {max_chars}: shorten the prompt, or set truncate_prompt_tokens",
            parameter="prompt",
            code="context_length_exceeded",
        )


def check_copies(params: SamplingParams, prompts: Sequence[Sequence[int]]) -> None:
    """Raises `ValidationError` for lists that are too long to be copied into every sample."""
    lists = (params.stop_token_ids, params.allowed_token_ids, params.logit_bias)
    num_entries = sum(len(each or ()) for each in lists)
    total = params.n * sum(len(prompt) + num_entries for prompt in prompts)
    if total > MAX_COPIED:
        raise ValidationError(
            "the token ids of the prompts and of stop_token_ids, allowed_token_ids and logit_bias, "
            f"taken once for every sample, are {total}; at most {MAX_COPIED} are taken: ask for "
            "fewer samples or in several requests",
            parameter="n",
        )


def check_vocabulary(
    vocab_size: int, prompts: Iterable[list[int]], *, parameter: str = "prompt"
) -> None:
    """Raises `ValidationError` for token ids that the model does not have."""
    for prompt in prompts:
        if prompt and not (min(prompt) >= 0 and max(prompt) < vocab_size):
            raise ValidationError(
                f"{parameter}: token ids must lie between 0 and {vocab_size - 1}",
                parameter=parameter,
            )


def with_priority(body: Any, header: str | None) -> Any:
    """`body` with the priority of the header `x-vllm-priority`, which wins over its own."""
    if header is not None:
        try:
            body.priority = max(-(2**63), min(int(header), 2**63 - 1))
        except ValueError:
            raise ValidationError("x-vllm-priority must be an integer") from None
    return body
