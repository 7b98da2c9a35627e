"""From a text-completion request to the job that the engine runs."""

from collections.abc import Sequence

from octavo_protocol.errors import ValidationError
from octavo_protocol.limits import limit
from octavo_protocol.openai import CompletionRequest
from octavo_protocol.overrides import PromptTokens
from octavo_protocol.sampling_params import MAX_N
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.server.beam import beam_params
from octavo_runtime.server.generation import GenerationJob
from octavo_runtime.server.requests import (
    check_characters,
    check_copies,
    check_vocabulary,
    maybe_in_thread,
    params_of,
)
from octavo_runtime.server.state import ServerState

DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = limit("VLLM_MAX_COMPLETION_PROMPTS", 1024)


async def completion_job(
    state: ServerState,
    request: CompletionRequest,
    prompt_tokens: PromptTokens | None = None,
    *,
    answer_id: str,
    request_id: str,
) -> GenerationJob:
    """Tokenizes the prompts. With `echo`, `logprobs` covers the prompts too.

    prompt_tokens: the tokens, where a router has made them with this server's tokenizer.

    Raises `ValidationError` for what this model does not allow, `UnavailableError` where the
    server takes no work.
    """
    info = state.check_generates()
    prompts = request.prompts()
    _check_counts(request, len(prompts))
    tokenizer = state.llm.tokenizer

    given = prompts if prompt_tokens is None else prompt_tokens.prompts(len(prompts))

    def encode() -> tuple[list[list[int]], list[str | None]]:
        special = request.add_special_tokens
        salt = request.cache_salt
        token_ids = [
            tokenizer.prompt_token_ids(each, add_special_tokens=special, cache_salt=salt)
            for each in given
        ]
        check_vocabulary(info.vocab_size, token_ids)
        return token_ids, _texts(tokenizer, prompts, is_decoded=is_decoded)

    check_characters(state, request, [each for each in prompts if isinstance(each, str)])
    is_decoded = request.echo or request.return_prompt_text
    num_chars = sum(len(each) for each in given if isinstance(each, str) or is_decoded)
    token_ids, prompt_texts = await maybe_in_thread(num_chars, encode)
    params = params_of(state, request, default_max_tokens=DEFAULT_MAX_TOKENS)
    if request.echo and params.logprobs is not None and params.prompt_logprobs is None:
        params.prompt_logprobs = params.logprobs
        params.skip_reading_prefix_cache = True
    token_ids = [request.truncated(ids, info.max_model_len) for ids in token_ids]
    check_copies(params, token_ids)
    return GenerationJob(
        answer_id=answer_id,
        request_id=request_id,
        prompts=token_ids,
        prompt_texts=prompt_texts,
        params=params,
        priority=request.priority,
        cache_salt=request.cache_salt or "",
        shared_prefix=prompt_tokens.shared if prompt_tokens is not None else None,
        adapter=state.adapter(request.model),
        beam=beam_params(request, params, info),
    )


def _check_counts(request: CompletionRequest, num_prompts: int) -> None:
    if num_prompts > MAX_PROMPTS:
        raise ValidationError(
            f"at most {MAX_PROMPTS} prompts in one request, got {num_prompts}", parameter="prompt"
        )
    if num_prompts > 1 and num_prompts * request.n > MAX_N:
        raise ValidationError(
            f"at most {MAX_N} samples in one request, got {num_prompts} prompts x n={request.n}",
            parameter="n",
        )


def _texts(
    tokenizer: Tokenizer, prompts: Sequence[str | list[int]], *, is_decoded: bool
) -> list[str | None]:
    """The prompts as text. is_decoded: also those of token ids."""
    if not is_decoded:
        return [prompt if isinstance(prompt, str) else None for prompt in prompts]
    return [prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in prompts]
