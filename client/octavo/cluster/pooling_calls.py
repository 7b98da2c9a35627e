"""What an `LLM` of a cluster can do with a model that pools: embed, classify, score, encode."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from octavo.cluster.bodies import Body
from octavo.cluster.pooling import (
    CLASSIFY,
    EMBEDDINGS,
    POOLING,
    SCORE,
    pooling_body,
    score_body,
    task_body,
)
from octavo.progress import ProgressBar
from octavo.prompts import as_list
from octavo.request_queue import per_prompt
from octavo.tokenization import TokenizationOptions
from octavo_protocol.errors import ValidationError
from octavo_protocol.pooling import (
    ClassificationRequestOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingParams,
    PoolingRequestOutput,
    ScoringRequestOutput,
)
from octavo_runtime.engine.scoring import pairs_of

Params = PoolingParams | Sequence[PoolingParams] | None


class ClusterPoolingCalls(ABC):
    """Base of `ClusterLLM`. Arguments and outputs are those of `PoolingCalls`, but for the token
    ids of texts, which are not told.
    """

    @abstractmethod
    def _run(self, endpoint: str, bodies: Iterator[Body], use_tqdm: ProgressBar) -> list[Any]: ...

    @abstractmethod
    def _models(self, lora_request: Any, count: int) -> list[str]: ...

    def embed(
        self,
        prompts: Any,
        *,
        use_tqdm: ProgressBar = True,
        pooling_params: Params = None,
        lora_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[EmbeddingRequestOutput]:
        """The vector of every prompt."""
        options = TokenizationOptions.parse(tokenization_kwargs)
        bodies = (
            pooling_body(*each, options)
            for each in self._pooled(prompts, pooling_params, lora_request)
        )
        return self._run(EMBEDDINGS, bodies, use_tqdm)

    def classify(
        self,
        prompts: Any,
        *,
        pooling_params: Params = None,
        use_tqdm: ProgressBar = True,
        lora_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[ClassificationRequestOutput]:
        """The probability of every class, for every prompt."""
        options = TokenizationOptions.parse(tokenization_kwargs)
        bodies = (
            pooling_body(*each, options)
            for each in self._pooled(prompts, pooling_params, lora_request)
        )
        return self._run(CLASSIFY, bodies, use_tqdm)

    def encode(
        self,
        prompts: Any,
        pooling_params: Params = None,
        *,
        use_tqdm: ProgressBar = True,
        lora_request: Any = None,
        pooling_task: str | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """The tensor of every prompt."""
        options = TokenizationOptions.parse(tokenization_kwargs)
        bodies = (
            task_body(*each, options, pooling_task)
            for each in self._pooled(prompts, pooling_params, lora_request)
        )
        return self._run(POOLING, bodies, use_tqdm)

    def score(
        self,
        data_1: Any,
        data_2: Any,
        /,
        *,
        use_tqdm: ProgressBar = True,
        pooling_params: PoolingParams | None = None,
        lora_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> list[ScoringRequestOutput]:
        """How well texts fit together: 1 with 1, 1 with N, or N with N, pair by pair."""
        options = TokenizationOptions.parse(tokenization_kwargs)
        pairs = _pairs(_some("data_1", data_1), _some("data_2", data_2))
        models = self._models(lora_request, len(pairs))
        bodies = (
            score_body(model, pair, pooling_params, options, chat_template)
            for model, pair in zip(models, pairs, strict=True)
        )
        return self._run(SCORE, bodies, use_tqdm)

    def _pooled(
        self, prompts: Any, pooling_params: Params, lora_request: Any
    ) -> Iterator[tuple[str, Any, PoolingParams | None]]:
        """(model, prompt, parameters) of each request."""
        originals = _some("prompts", prompts)
        params = per_prompt("pooling_params", pooling_params, len(originals), None)
        models = self._models(lora_request, len(originals))
        return zip(models, originals, params, strict=True)


def _some(name: str, data: Any) -> list[Any]:
    items = as_list(data)
    if not items:
        raise ValidationError(f"{name} must not be empty", parameter=name)
    return items


def _pairs(first: list[Any], second: list[Any]) -> list[tuple[Any, Any]]:
    return [(first[i], second[j]) for i, j in pairs_of(len(first), len(second))]
