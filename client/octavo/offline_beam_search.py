"""`LLM.beam_search`: searches of several prompts, run together step by step."""

from collections.abc import Iterator, Sequence
from typing import Any

from octavo.engine.llm_engine import LLMEngine
from octavo.progress import ProgressBar, progress_bar
from octavo.prompts import RenderedPrompt
from octavo.request_queue import RequestQueue
from octavo_protocol.beam_search import BeamSearchOutput, BeamSearchParams
from octavo_protocol.errors import ValidationError
from octavo_protocol.outputs import CompletionOutput, RequestOutput
from octavo_runtime.engine.beam_search import BeamSearch


def search(
    engine: LLMEngine,
    queue: RequestQueue,
    prompts: Sequence[RenderedPrompt],
    originals: Sequence[Any],
    params: BeamSearchParams,
    *,
    priorities: Sequence[int],
    adapters: Sequence[Any],
    concurrency_limit: int | None,
    use_tqdm: ProgressBar,
) -> list[BeamSearchOutput]:
    """The best beams of each prompt. concurrency_limit: prompts that are searched at a time."""
    if concurrency_limit is not None and concurrency_limit < 1:
        raise ValidationError("concurrency_limit must be at least 1", parameter="concurrency_limit")
    _check_width(engine, params)
    outputs: list[BeamSearchOutput] = []
    step = concurrency_limit or max(1, len(prompts))
    with progress_bar(use_tqdm, len(prompts), "Beam search") as bar:
        for first in range(0, len(prompts), step):
            group = slice(first, first + step)
            searches = _run(
                engine, queue, prompts[group], params, priorities[group], adapters[group]
            )
            for one, prompt, original, adapter in zip(
                searches, prompts[group], originals[group], adapters[group], strict=True
            ):
                outputs.append(_output(engine, one, prompt, original, adapter))
                if bar is not None:
                    bar.update(1)
    return outputs


def as_request_output(
    output: BeamSearchOutput, request_id: str, prompt: RenderedPrompt
) -> RequestOutput:
    """The beams as `LLM.generate` once returned them: one completion each."""
    completions = []
    for index, beam in enumerate(output.sequences):
        whole, start = beam.text or "", prompt.text or ""
        completions.append(
            CompletionOutput(
                index=index,
                text=whole.removeprefix(start),
                token_ids=beam.tokens[len(prompt.token_ids) :],
                cumulative_logprob=beam.cum_logprob,
                logprobs=beam.logprobs,
                finish_reason=beam.finish_reason,
                stop_reason=beam.stop_reason,
            )
        )
    return RequestOutput(
        request_id, prompt.text, prompt.token_ids, outputs=completions, finished=True
    )


def _run(
    engine: LLMEngine,
    queue: RequestQueue,
    prompts: Sequence[RenderedPrompt],
    params: BeamSearchParams,
    priorities: Sequence[int],
    adapters: Sequence[Any],
) -> list[BeamSearch]:
    eos = list(engine.engine.info.eos_token_ids)
    if engine.tokenizer is not None and engine.tokenizer.eos_token_id is not None:
        eos.append(engine.tokenizer.eos_token_id)
    max_model_len = engine.model_config.max_model_len
    searches = [
        BeamSearch(prompt.token_ids, params, eos, max_model_len=max_model_len) for prompt in prompts
    ]
    while batch := list(_next(searches)):
        request_ids = queue.add(
            [RenderedPrompt(ids, None, prompts[i].cache_salt) for i, ids in batch],
            [searches[i].sampling_params for i, _ in batch],
            [priorities[i] for i, _ in batch],
            [adapters[i] for i, _ in batch],
        )
        results = queue.run(request_ids, False)
        for i, one in enumerate(searches):
            entries = [
                (result.outputs[0].logprobs or [{}])[0]
                for (owner, _), result in zip(batch, results, strict=True)
                if owner == i
            ]
            if entries:
                one.advance(entries)
    return searches


def _next(searches: Sequence[BeamSearch]) -> Iterator[tuple[int, list[int]]]:
    """(number of the search, prompt) of everything that is to run now."""
    for i, one in enumerate(searches):
        for token_ids in one.next_prompts():
            yield i, token_ids


def _output(
    engine: LLMEngine, one: BeamSearch, prompt: RenderedPrompt, original: Any, adapter: Any
) -> BeamSearchOutput:
    sequences = one.result()
    for beam in sequences:
        beam.lora_request = adapter
        beam.orig_prompt = original
        if engine.tokenizer is not None:
            beam.text = engine.tokenizer.decode(
                beam.tokens, skip_special_tokens=one.params.skip_special_tokens
            )
    return BeamSearchOutput(sequences)


def _check_width(engine: LLMEngine, params: BeamSearchParams) -> None:
    limit, needed = engine.engine.info.max_logprobs, 2 * params.beam_width
    if limit != -1 and needed > limit and not params.allowed_token_ids:
        raise ValidationError(
            f"beam_width {params.beam_width} needs {needed} log-probabilities per token: write "
            f"LLM(..., max_logprobs={needed}), which is {limit} now",
            parameter="beam_width",
        )
