"""Answers of a batch as the outputs of an offline `LLM`. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.cluster import pooling
from octavo.offline_beam_search import as_request_output
from octavo.prompts import RenderedPrompt
from octavo_protocol.beam_search import BeamSearchOutput, BeamSearchSequence
from octavo_protocol.outputs import CompletionOutput, Logprob, RequestOutput

Json = Mapping[str, Any]


def output_of(request_id: str, endpoint: str, body: Json, answer: Json) -> Any:
    """What `answer` says to the request `body` of `endpoint`."""
    return _MAKERS[endpoint](request_id, body, answer)


def completions_of_beams(request_id: str, endpoint: str, body: Json, answer: Json) -> RequestOutput:
    """The beams as `LLM.generate` once returned them: one completion each."""
    prompt = body["prompt"]
    rendered = RenderedPrompt(
        answer["choices"][0]["prompt_token_ids"], prompt if isinstance(prompt, str) else None
    )
    return as_request_output(_beams(body, answer), request_id, rendered)


def _completion(request_id: str, body: Json, answer: Json) -> RequestOutput | BeamSearchOutput:
    if body.get("use_beam_search"):
        return _beams(body, answer)
    first = answer["choices"][0]
    prompt = body["prompt"]
    return _request_output(
        request_id,
        prompt if isinstance(prompt, str) else None,
        first,
        answer,
        [_choice(each, each["text"]) for each in answer["choices"]],
    )


def _beams(body: Json, answer: Json) -> BeamSearchOutput:
    return BeamSearchOutput([_beam(body, each) for each in answer["choices"]])


def _beam(body: Json, choice: Json) -> BeamSearchSequence:
    """An end token that is not shown counts in the score."""
    positions = _output_logprobs(choice) or []
    chosen = [*choice["token_ids"], choice["stop_reason"]][: len(positions)]
    return BeamSearchSequence(
        tokens=[*choice["prompt_token_ids"], *choice["token_ids"]],
        logprobs=positions,
        cum_logprob=sum(each[token].logprob for each, token in zip(positions, chosen, strict=True)),
        text=choice["prompt_text"] + choice["text"],
        finish_reason=choice["finish_reason"],
        stop_reason=choice["stop_reason"],
        orig_prompt=body["prompt"],
    )


def _chat(request_id: str, body: Json, answer: Json) -> RequestOutput:
    choices = [_choice(each, each["message"]["content"] or "") for each in answer["choices"]]
    return _request_output(request_id, answer.get("prompt_text"), answer, answer, choices)


_MAKERS = {
    "/v1/completions": _completion,
    "/v1/chat/completions": _chat,
    pooling.EMBEDDINGS: pooling.embedding,
    pooling.CLASSIFY: pooling.classification,
    pooling.SCORE: pooling.scoring,
    pooling.POOLING: pooling.pooled,
}


def _request_output(
    request_id: str,
    prompt: str | None,
    about_prompt: Json,
    answer: Json,
    outputs: list[CompletionOutput],
) -> RequestOutput:
    details = answer["usage"].get("prompt_tokens_details") or {}
    return RequestOutput(
        request_id,
        prompt,
        about_prompt.get("prompt_token_ids"),
        _prompt_logprobs(about_prompt.get("prompt_logprobs")),
        outputs,
        finished=True,
        num_cached_tokens=details.get("cached_tokens"),
    )


def _choice(choice: Json, text: str) -> CompletionOutput:
    token_ids = choice.get("token_ids") or []
    logprobs = _output_logprobs(choice)
    total = None
    if logprobs is not None:
        total = sum(each[token].logprob for each, token in zip(logprobs, token_ids, strict=True))
    return CompletionOutput(
        index=choice["index"],
        text=text,
        token_ids=token_ids,
        cumulative_logprob=total,
        logprobs=logprobs,
        finish_reason=choice["finish_reason"],
        stop_reason=choice.get("stop_reason"),
    )


def _output_logprobs(choice: Json) -> list[dict[int, Logprob]] | None:
    told = choice.get("output_logprobs")
    return None if told is None else [_position(each) for each in told]


def _prompt_logprobs(
    told: Sequence[Json | None] | None,
) -> list[dict[int, Logprob] | None] | None:
    if told is None:
        return None
    return [None if each is None else _position(each) for each in told]


def _position(told: Json) -> dict[int, Logprob]:
    return {
        int(token): Logprob(each["logprob"], each["rank"], each["decoded_token"])
        for token, each in told.items()
    }
