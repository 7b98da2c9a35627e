"""Answers of a batch as the outputs of an offline `LLM`. Pure.

What HTTP does not tell is left out: `decoded_token` of log-probabilities, and the `rank` of a token
that is not among the best that were asked for.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from octavo_protocol.outputs import CompletionOutput, Logprob, RequestOutput
from octavo_protocol.pooling import EmbeddingOutput, EmbeddingRequestOutput

_TOKEN_ID = "token_id:"
Json = Mapping[str, Any]


def output_of(request_id: str, endpoint: str, body: Json, answer: Json) -> Any:
    """What `answer` says to the request `body` of `endpoint`."""
    return _MAKERS[endpoint](request_id, body, answer)


def _completion(request_id: str, body: Json, answer: Json) -> RequestOutput:
    first = answer["choices"][0]
    prompt = body["prompt"]
    return _request_output(
        request_id,
        prompt if isinstance(prompt, str) else None,
        first.get("prompt_token_ids"),
        first.get("prompt_logprobs"),
        answer,
        [_choice(each, each["text"], _text_logprobs(each)) for each in answer["choices"]],
    )


def _chat(request_id: str, body: Json, answer: Json) -> RequestOutput:
    choices = [
        _choice(each, each["message"]["content"] or "", _chat_logprobs(each))
        for each in answer["choices"]
    ]
    return _request_output(
        request_id,
        answer.get("prompt_text"),
        answer.get("prompt_token_ids"),
        answer.get("prompt_logprobs"),
        answer,
        choices,
    )


def _embedding(request_id: str, body: Json, answer: Json) -> EmbeddingRequestOutput:
    given = body["input"]
    return EmbeddingRequestOutput(
        request_id,
        EmbeddingOutput(answer["data"][0]["embedding"]),
        given if isinstance(given, list) else [],
    )


_MAKERS = {
    "/v1/completions": _completion,
    "/v1/chat/completions": _chat,
    "/v1/embeddings": _embedding,
}


def _request_output(
    request_id: str,
    prompt: str | None,
    token_ids: list[int] | None,
    prompt_logprobs: Sequence[Json | None] | None,
    answer: Json,
    outputs: list[CompletionOutput],
) -> RequestOutput:
    details = answer["usage"].get("prompt_tokens_details") or {}
    return RequestOutput(
        request_id,
        prompt,
        token_ids,
        None if prompt_logprobs is None else [_prompt_logprob(each) for each in prompt_logprobs],
        outputs,
        finished=True,
        num_cached_tokens=details.get("cached_tokens"),
    )


def _choice(choice: Json, text: str, logprobs: list[dict[int, Logprob]] | None) -> CompletionOutput:
    token_ids = choice.get("token_ids") or []
    total = None
    if logprobs is not None:
        total = sum(each[token].logprob for each, token in zip(logprobs, token_ids, strict=False))
    return CompletionOutput(
        index=choice["index"],
        text=text,
        token_ids=token_ids,
        cumulative_logprob=total,
        logprobs=logprobs,
        finish_reason=choice["finish_reason"],
        stop_reason=choice.get("stop_reason"),
    )


def _text_logprobs(choice: Json) -> list[dict[int, Logprob]] | None:
    told = choice.get("logprobs")
    if told is None:
        return None
    best = told["top_logprobs"] or [None] * len(told["tokens"])
    return [
        _entry(_id(token), logprob, {_id(name): value for name, value in (top or {}).items()})
        for token, logprob, top in zip(told["tokens"], told["token_logprobs"], best, strict=True)
    ]


def _chat_logprobs(choice: Json) -> list[dict[int, Logprob]] | None:
    told = choice.get("logprobs")
    if told is None:
        return None
    return [
        _entry(
            _id(each["token"]),
            each["logprob"],
            {_id(top["token"]): top["logprob"] for top in each["top_logprobs"]},
        )
        for each in told["content"]
    ]


def _entry(token: int, logprob: float, best: Mapping[int, float]) -> dict[int, Logprob]:
    ordered = sorted(best.items(), key=lambda item: -item[1])
    ranked = {each: Logprob(value, rank) for rank, (each, value) in enumerate(ordered, start=1)}
    return {token: ranked.pop(token, Logprob(logprob)), **ranked}


def _prompt_logprob(told: Json | None) -> dict[int, Logprob] | None:
    if told is None:
        return None
    return {
        int(token): Logprob(each["logprob"], each.get("rank"), each.get("decoded_token"))
        for token, each in told.items()
    }


def _id(token: str) -> int:
    return int(token.removeprefix(_TOKEN_ID))
