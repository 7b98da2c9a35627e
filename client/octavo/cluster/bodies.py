"""Prompts and parameters as the bodies of requests. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from octavo.tokenization import TokenizationOptions
from octavo_protocol.beam_search import BeamSearchParams
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
_PLAIN = TokenizationOptions()


def completion_body(
    model: str,
    prompt: Any,
    params: SamplingParams | None,
    *,
    max_model_len: int | None,
    options: TokenizationOptions = _PLAIN,
) -> Body:
    """Of /v1/completions. Raises TypeError for what is no prompt."""
    body = {"model": model, **sampling_fields(params, max_model_len)}
    body |= prompt_fields("prompt", prompt, options)
    if (num_top := _num_logprobs(params)) is not None:
        body |= {"logprobs": num_top, "return_output_logprobs": True}
    return body


def beam_body(model: str, prompt: Any, params: BeamSearchParams) -> Body:
    """Of /v1/completions, by beam search."""
    if params.structured_outputs is not None:
        raise ValidationError(
            "beam search takes no structured_outputs: leave them out, or sample",
            parameter="structured_outputs",
        )
    body: Body = {
        "model": model,
        "use_beam_search": True,
        "n": params.beam_width,
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "length_penalty": params.length_penalty,
        "ignore_eos": params.ignore_eos,
        "include_stop_str_in_output": params.include_stop_str_in_output,
        "skip_special_tokens": params.skip_special_tokens,
        "logprobs": 0,
        "return_output_logprobs": True,
        "return_token_ids": True,
        "return_prompt_text": True,
        **prompt_fields("prompt", prompt),
    }
    if params.allowed_token_ids is not None:
        body["allowed_token_ids"] = params.allowed_token_ids
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
    body["return_prompt_text"] = True
    if (num_top := _num_logprobs(params)) is not None:
        body |= {"logprobs": True, "top_logprobs": num_top, "return_output_logprobs": True}
    return body | {name: value for name, value in options.items() if value is not None}


def sampling_fields(params: SamplingParams | None, max_model_len: int | None) -> Body:
    """The fields that mean `params`; None: the model's own defaults.

    max_model_len: stands for no limit, since a request without `max_tokens` has one.
    """
    fields: Body = {"return_token_ids": True}
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


def prompt_fields(name: str, prompt: Any, options: TokenizationOptions = _PLAIN) -> Body:
    """The field `name` that holds the prompt, its salt, and how it becomes tokens.

    Raises TypeError for what is no prompt.
    """
    salt = None
    if isinstance(prompt, Mapping):
        if unknown := sorted(prompt.keys() - _PROMPT_KEYS):
            raise ValidationError(
                f"a prompt for a cluster has {sorted(_PROMPT_KEYS)}, not {unknown[0]!r}",
                parameter="prompt",
            )
        salt = prompt.get("cache_salt")
        prompt = prompt.get("prompt_token_ids") or prompt.get("prompt")
    fields = {name: _prompt(prompt, options), **tokenization_fields(options)}
    return {**fields, "cache_salt": salt} if salt else fields


def tokenization_fields(options: TokenizationOptions) -> Body:
    """Those that differ from the default."""
    fields = {
        "truncate_prompt_tokens": options.max_tokens,
        "truncation_side": options.truncation_side,
        "add_special_tokens": options.add_special_tokens,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _num_logprobs(params: SamplingParams | None) -> int | None:
    if params is None:
        return None
    return 0 if params.logprobs is None and params.logprob_token_ids else params.logprobs


def _prompt(prompt: Any, options: TokenizationOptions) -> str | list[int]:
    if isinstance(prompt, str):
        return options.text(prompt)
    if isinstance(prompt, Sequence) and all(isinstance(each, int) for each in prompt):
        return list(prompt)
    raise TypeError(
        "a prompt must be a string, a list of token ids, {'prompt': ...} or "
        f"{{'prompt_token_ids': ...}}, not {type(prompt).__name__}"
    )
