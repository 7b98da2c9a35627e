"""What an `LLM` of a pooling model can do: encode, embed, classify, score."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from octavo.chat_templates import load_chat_template
from octavo.engine_access import EngineAccess
from octavo.progress import ProgressBar, watched
from octavo.prompts import RenderedPrompt, as_list
from octavo.request_queue import RequestQueue, per_prompt
from octavo.score_inputs import text_of
from octavo.tokenization import TokenizationOptions
from octavo_protocol.errors import ValidationError
from octavo_protocol.lora import LoRARequest
from octavo_protocol.pooling import (
    POOLING_TASKS,
    ClassificationOutput,
    ClassificationRequestOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingParams,
    PoolingRequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
)
from octavo_runtime.engine.messages import PoolingInfo
from octavo_runtime.engine.scoring import (
    PairOptions,
    pair_prompt,
    pair_score,
    pair_template,
    pairs_of,
    refuse_unscored,
)

Adapters = LoRARequest | Sequence[LoRARequest | None] | None
Params = PoolingParams | Sequence[PoolingParams] | None
Result = TypeVar("Result")
Pooled = PoolingRequestOutput[PoolingOutput]
# Tasks that vLLM has removed from `encode`.
_FORMER_TASKS = {
    "score": "use LLM.score",
    "encode": "use token_embed or token_classify",
    "reward": "use classify or token_classify",
}


class PoolingCalls(EngineAccess):
    """Base of `LLM`, which makes the engine and the queue."""

    _queue: RequestQueue
    chat_template: str | None

    def encode(
        self,
        prompts: Any,
        pooling_params: Params = None,
        *,
        use_tqdm: ProgressBar = True,
        lora_request: Adapters = None,
        pooling_task: str | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[Pooled]:
        """The tensor of every prompt, in the order of the prompts.

        prompts: as for `generate`. pooling_task: embed, classify, token_embed or token_classify;
        may be left out where the parameters name it. pooling_params: one for all, or one each.

        Raises `ValidationError` (a ValueError) or TypeError before anything is computed.
        """
        info = self._pooling_info("encode")
        options = TokenizationOptions.parse(tokenization_kwargs)
        originals = _some("prompts", as_list(prompts))
        params = per_prompt("pooling_params", pooling_params, len(originals), PoolingParams())
        params = [_with_task(each, pooling_task, info) for each in params]
        rendered = [
            self.renderer.render(prompt, options)
            for prompt in watched(originals, use_tqdm, len(originals), "Rendering prompts")
        ]
        return self._pool(rendered, params, use_tqdm, lora_request)

    def embed(
        self,
        prompts: Any,
        *,
        use_tqdm: ProgressBar = True,
        pooling_params: Params = None,
        lora_request: Adapters = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """The vector of every prompt: an `EmbeddingRequestOutput` each. Of a model for token_embed:
        a `PoolingRequestOutput` each, with one row per token.
        """
        info = self._pooling_info("embed")
        task = "token_embed" if info.task == "token_embed" else "embed"
        _require(info, task, "embed", "an embedder")
        results = self.encode(
            prompts,
            pooling_params,
            use_tqdm=use_tqdm,
            lora_request=lora_request,
            pooling_task=task,
            tokenization_kwargs=tokenization_kwargs,
        )
        if task == "token_embed":
            return results
        return [
            _as(EmbeddingRequestOutput, each, EmbeddingOutput(each.outputs.data.tolist()))
            for each in results
        ]

    def classify(
        self,
        prompts: Any,
        *,
        pooling_params: Params = None,
        use_tqdm: ProgressBar = True,
        lora_request: Adapters = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[ClassificationRequestOutput]:
        """The probability of every class, for every prompt."""
        _require(self._pooling_info("classify"), "classify", "classify", "a classifier")
        results = self.encode(
            prompts,
            pooling_params,
            use_tqdm=use_tqdm,
            lora_request=lora_request,
            pooling_task="classify",
            tokenization_kwargs=tokenization_kwargs,
        )
        return [
            _as(ClassificationRequestOutput, each, ClassificationOutput(each.outputs.data.tolist()))
            for each in results
        ]

    def score(
        self,
        data_1: Any,
        data_2: Any,
        /,
        *,
        use_tqdm: ProgressBar = True,
        pooling_params: PoolingParams | None = None,
        lora_request: Adapters = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> list[ScoringRequestOutput]:
        """How well texts fit together: 1 with 1, 1 with N, or N with N, pair by pair.

        A cross-encoder reads each pair as one prompt; an embedder's vectors are compared by their
        cosine, a late-interaction model's by MaxSim. chat_template: renders the messages "query"
        and "document" of a cross-encoder's pair; None: `LLM`'s, or the model's own if it reads
        these; without one the tokenizer joins the texts.
        """
        info = self._pooling_info("score")
        refuse_unscored(info.scoring, info.tasks, len(info.labels))
        first, second = (_some(name, _texts(data)) for name, data in _named(data_1, data_2))
        pairs = pairs_of(len(first), len(second))
        options = TokenizationOptions.parse(tokenization_kwargs)
        params = pooling_params or PoolingParams()
        if info.scoring == "cross-encoder":
            prompts = [
                self._pair(first[i], second[j], options, load_chat_template(chat_template))
                for i, j in watched(pairs, use_tqdm, len(pairs), "Rendering prompts")
            ]
            return self._score_pairs(prompts, params, info, use_tqdm, lora_request)
        if chat_template is not None:
            raise ValidationError(
                "chat_template is for models that read both texts in one prompt; this one compares "
                "the vectors of the two: leave it out",
                parameter="chat_template",
            )
        return self._score_vectors(
            first, second, pairs, params, info, options, use_tqdm, lora_request
        )

    # -- inside -----------------------------------------------------------------------------------

    def _score_pairs(
        self,
        prompts: list[RenderedPrompt],
        params: PoolingParams,
        info: PoolingInfo,
        use_tqdm: ProgressBar,
        lora_request: Adapters,
    ) -> list[ScoringRequestOutput]:
        task = _with_task(params, "classify", info)
        return [
            _as(ScoringRequestOutput, each, ScoringOutput(float(each.outputs.data[0])))
            for each in self._pool(prompts, [task] * len(prompts), use_tqdm, lora_request)
        ]

    def _score_vectors(
        self,
        first: list[Any],
        second: list[Any],
        pairs: list[tuple[int, int]],
        params: PoolingParams,
        info: PoolingInfo,
        options: TokenizationOptions,
        use_tqdm: ProgressBar,
        lora_request: Adapters,
    ) -> list[ScoringRequestOutput]:
        rendered = [self.renderer.render(text, options) for text in (*first, *second)]
        task = _with_task(params, info.task, info)
        vectors = self._pool(rendered, [task] * len(rendered), use_tqdm, lora_request)
        results = []
        for i, j in pairs:
            one, other = vectors[i], vectors[len(first) + j]
            score = pair_score(info.scoring, one.outputs.data.numpy(), other.outputs.data.numpy())
            results.append(
                ScoringRequestOutput(
                    request_id=f"{one.request_id}_{other.request_id}",
                    outputs=ScoringOutput(score),
                    prompt_token_ids=one.prompt_token_ids + other.prompt_token_ids,
                    num_cached_tokens=one.num_cached_tokens + other.num_cached_tokens,
                )
            )
        return results

    def _pair(
        self, query: Any, document: Any, options: TokenizationOptions, template: str | None
    ) -> RenderedPrompt:
        renderer = self.renderer
        if renderer.tokenizer is None:
            raise ValidationError(
                "skip_tokenizer_init=True leaves no tokenizer, which pairs need", parameter="data_1"
            )
        pair = pair_prompt(
            renderer.tokenizer,
            options.text(text_of("data_1", query)),
            options.text(text_of("data_2", document)),
            PairOptions(
                pair_template(renderer.tokenizer, template or self.chat_template),
                truncation=renderer.truncation(options),
            ),
        )
        return RenderedPrompt(pair.token_ids, token_type_ids=pair.token_type_ids or [])

    def _pool(
        self,
        prompts: list[RenderedPrompt],
        params: list[PoolingParams],
        use_tqdm: ProgressBar,
        lora_request: Adapters,
    ) -> list[Pooled]:
        adapters = per_prompt("lora_request", lora_request, len(prompts), None)
        request_ids = self._queue.add(prompts, params, [0] * len(prompts), adapters)
        return self._queue.run_pooling(request_ids, use_tqdm)

    def _pooling_info(self, method: str) -> PoolingInfo:
        info = self.llm_engine.engine.info.pooling
        if info is None:
            raise ValidationError(
                f"LLM.{method} needs a pooling model; this one generates: use LLM.generate or "
                "LLM.chat, or start it with runner='pooling'"
            )
        return info


def _with_task(params: Any, task: str | None, info: PoolingInfo) -> PoolingParams:
    """A copy of the parameters with their task. Raises `ValidationError` without one."""
    if not isinstance(params, PoolingParams):
        raise TypeError(f"expected PoolingParams, got {type(params).__name__}")
    if task in _FORMER_TASKS:
        raise ValidationError(
            f"pooling_task={task!r} is not one any more: {_FORMER_TASKS[task]}",
            parameter="pooling_task",
        )
    if task is not None and task not in POOLING_TASKS:
        raise ValidationError(
            f"pooling_task must be one of {', '.join(POOLING_TASKS)}, got {task!r}",
            parameter="pooling_task",
        )
    if task is None and params.task is None:
        raise ValidationError(
            "encode needs pooling_task: this model has "
            f"{', '.join(info.tasks)}. Or use LLM.embed, LLM.classify or LLM.score",
            parameter="pooling_task",
        )
    if None not in (task, params.task) and task != params.task:
        raise ValidationError(
            f"pooling_task is {task}, but pooling_params.task is {params.task}: give one of them",
            parameter="pooling_task",
        )
    return msgspec.structs.replace(params, task=task or params.task)


def _require(info: PoolingInfo, task: str, convert: str, kind: str) -> None:
    if task not in info.tasks:
        raise ValidationError(
            f"LLM.{convert} needs {kind}; this model's tasks are {', '.join(info.tasks)}. Start it "
            f"with convert={convert!r}, or use LLM.encode(..., pooling_task={info.task!r})",
            parameter="task",
        )


def _named(data_1: Any, data_2: Any) -> tuple[tuple[str, Any], tuple[str, Any]]:
    return ("data_1", data_1), ("data_2", data_2)


def _texts(data: Any) -> list[Any]:
    """One text or many as a list."""
    return [data] if isinstance(data, str | Mapping) else as_list(data)


def _some(name: str, items: list[Any]) -> list[Any]:
    if not items:
        raise ValidationError(f"{name} must not be empty", parameter=name)
    return items


def _as(kind: Callable[..., Result], pooled: Pooled, outputs: Any) -> Result:
    """The result with `outputs` of its own kind in place of the tensor."""
    return kind(
        request_id=pooled.request_id,
        outputs=outputs,
        prompt_token_ids=pooled.prompt_token_ids,
        num_cached_tokens=pooled.num_cached_tokens,
        metrics=pooled.metrics,
    )
