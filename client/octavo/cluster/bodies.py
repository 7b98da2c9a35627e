"""Prompts and parameters as the bodies of requests. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from octavo_protocol.errors import ValidationError
from octavo_protocol.sampling_params import SamplingParams

Body = dict[str, Any]

# Said in every request, so that the model's own defaults do not count.
_ALWAYS = (
    *("n", "temperature", "top_p", "top_k", "min_p"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
)
_WHERE_SET = (
    *("seed", "stop", "stop_token_ids", "ignore_eos", "min_tokens", "prompt_logprobs"),
    *("logprob_token_ids", "skip_special_tokens", "spaces_between_special_tokens"),
    *("include_stop_str_in_output", "structured_outputs", "allowed_token_ids", "bad_words"),
    *("thinking_token_budget", "repetition_detection"),
)
_DEFAULTS = SamplingParams()
_PROMPT_KEYS = frozenset({"prompt", "prompt_token_ids", "cache_salt"})


def completion_body(
    model: str, prompt: Any, params: SamplingParams | None, *, max_model_len: int | None
) -> Body:
    """Of /v1/completions. Raises TypeError for what is no prompt."""
    body = {"model": model, **_prompt(prompt), **sampling_fields(params, max_model_len)}
    if params is not None and params.logprobs is not None:
        body["logprobs"] = params.logprobs
    return body


def chat_body(
    model: str,
    messages: Sequence[Any],
    params: SamplingParams | None,
    options: Mapping[str, Any],
    *,
    max_model_len: int | None,
) -> Body:
    """Of /v1/chat/completions. options: fields beside the messages; None: not given."""
    body = {"model": model, "messages": list(messages), **sampling_fields(params, max_model_len)}
    if params is not None and params.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": params.logprobs}
    return body | {name: value for name, value in options.items() if value is not None}


def embedding_body(model: str, prompt: Any, *, dimensions: int | None) -> Body:
    """Of /v1/embeddings, with one input."""
    given = _prompt(prompt)
    body: Body = {"model": model, "input": given.pop("prompt"), **given}
    return body if dimensions is None else body | {"dimensions": dimensions}


def sampling_fields(params: SamplingParams | None, max_model_len: int | None) -> Body:
    """The fields that mean `params`; None: the model's own defaults.

    max_model_len: stands for no limit, since a request without `max_tokens` has one.
    """
    fields: Body = {"return_token_ids": True, "return_tokens_as_token_ids": True}
    if params is None:
        return fields
    fields |= {name: getattr(params, name) for name in _ALWAYS}
    for name in _WHERE_SET:
        value = getattr(params, name)
        if value != getattr(_DEFAULTS, name):
            fields[name] = msgspec.to_builtins(value)
    if params.logit_bias:
        fields["logit_bias"] = {str(token): value for token, value in params.logit_bias.items()}
    if params.extra_args:
        fields["vllm_xargs"] = params.extra_args
    limit = max_model_len if params.max_tokens is None else params.max_tokens
    return fields if limit is None else fields | {"max_tokens": limit}


def _prompt(prompt: Any) -> Body:
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if isinstance(prompt, Mapping):
        if unknown := sorted(prompt.keys() - _PROMPT_KEYS):
            raise ValidationError(
                f"a prompt for a cluster has {sorted(_PROMPT_KEYS)}, not {unknown[0]!r}",
                parameter="prompt",
            )
        given = prompt.get("prompt_token_ids") or prompt.get("prompt")
        salt = prompt.get("cache_salt")
        return {**_prompt(given), **({"cache_salt": salt} if salt else {})}
    if isinstance(prompt, Sequence) and all(isinstance(each, int) for each in prompt):
        return {"prompt": list(prompt)}
    raise TypeError(
        "a prompt must be a string, a list of token ids, {'prompt': ...} or "
        f"{{'prompt_token_ids': ...}}, not {type(prompt).__name__}"
    )
