"""An `LLM` whose engine is a cluster."""

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self

from octavo.batch_client import BatchClient
from octavo.cluster.bodies import Body, chat_body, completion_body, embedding_body
from octavo.cluster.jobs import ClusterJobs
from octavo.former_calls import with_token_ids
from octavo.progress import ProgressBar
from octavo.prompts import as_list
from octavo.request_queue import per_prompt
from octavo_protocol.beam_search import BeamSearchParams
from octavo_protocol.errors import ConfigError, NotFoundError, ValidationError
from octavo_protocol.pooling import PoolingParams
from octavo_protocol.sampling_params import SamplingParams

_COMPLETIONS, _CHAT, _EMBEDDINGS = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
Params = SamplingParams | Sequence[SamplingParams] | None


class ClusterLLM:
    """What `LLM(model, cluster=…)` makes: `generate`, `chat` and `embed` run as durable batches of
    the platform at `cluster`; their results are those of an `LLM` in process.

    model: name that the platform serves. cluster: its address; True: `OCTAVO_URL`. api_key:
    default `OCTAVO_API_KEY`. window: how long a job may take, as `24h`.

    Raises `ConfigError` without an address, and `OctavoError` where nobody serves the model.
    """

    def __init__(
        self,
        model: str,
        *,
        cluster: str | bool = True,
        api_key: str | None = None,
        window: str = "24h",
        **arguments: Any,
    ) -> None:
        if arguments:
            name = next(iter(arguments))
            raise TypeError(
                f"{name} is set where the model is served; with cluster=… there are model, "
                "api_key and window"
            )
        self._client = connect(cluster, api_key)
        self._jobs = ClusterJobs(self._client, window=window)
        self._model = model
        try:
            self._max_model_len = self._context(model)
        except BaseException:
            self.shutdown()
            raise

    # -- jobs -------------------------------------------------------------------------------------

    def submit(self, prompts: Any, sampling_params: Params = None) -> str:
        """As `generate`, without waiting: the id of a job for `LLM.attach`."""
        return self._jobs.submit(_COMPLETIONS, self._completions(as_list(prompts), sampling_params))

    def shutdown(self) -> None:
        """Closes the connection; jobs go on."""
        self._client.close()

    # -- calls ------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Any = None,
        sampling_params: Params | BeamSearchParams = None,
        *,
        use_tqdm: ProgressBar = True,
        lora_request: Any = None,
        prompt_token_ids: Any = None,
    ) -> list[Any]:
        """Completes every prompt; results are in the order of the prompts."""
        if isinstance(sampling_params, BeamSearchParams):
            self.beam_search()
        originals = as_list(with_token_ids(prompts, prompt_token_ids))
        bodies = self._completions(originals, sampling_params, lora_request)
        return self._run(_COMPLETIONS, bodies, use_tqdm)

    def chat(
        self,
        messages: Sequence[Any],
        sampling_params: Params = None,
        use_tqdm: ProgressBar = True,
        lora_request: Any = None,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """Answers one conversation (a list of messages) or many (a list of such lists)."""
        many = [messages] if messages and isinstance(messages[0], Mapping) else list(messages)
        params = per_prompt("sampling_params", sampling_params, len(many), None)
        options = {
            "chat_template": chat_template,
            "tools": tools,
            "chat_template_kwargs": chat_template_kwargs,
            "add_generation_prompt": None if add_generation_prompt else False,
            "continue_final_message": continue_final_message or None,
        }
        model = self._name(lora_request)
        bodies = [
            chat_body(model, each, one, options, max_model_len=self._max_model_len)
            for each, one in zip(many, params, strict=True)
        ]
        return self._run(_CHAT, bodies, use_tqdm)

    def embed(
        self,
        prompts: Any,
        *,
        use_tqdm: ProgressBar = True,
        pooling_params: PoolingParams | None = None,
    ) -> list[Any]:
        """The vector of every prompt."""
        dimensions = None if pooling_params is None else pooling_params.dimensions
        bodies = [
            embedding_body(self._model, each, dimensions=dimensions) for each in as_list(prompts)
        ]
        if not bodies:
            raise ValidationError("prompts must not be empty", parameter="prompts")
        return self._run(_EMBEDDINGS, bodies, use_tqdm)

    def beam_search(self, *_: Any, **__: Any) -> NoReturn:
        """Not through a cluster."""
        raise ValidationError(
            "beam search does not run on a cluster through LLM; use LLM in process, or "
            "use_beam_search of /v1/completions"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        return f"LLM({self._model!r}, cluster={self._client.base_url!r})"

    # -- inside -----------------------------------------------------------------------------------

    def _context(self, model: str) -> int | None:
        """Its longest context in tokens. Raises `NotFoundError` where nobody serves it."""
        served = self._client.models()
        if model not in served:
            raise NotFoundError(
                f"the cluster does not serve {model!r}; it serves {', '.join(sorted(served))}"
            )
        return served[model]

    def _completions(
        self, prompts: list[Any], sampling_params: Params, lora_request: Any = None
    ) -> list[Body]:
        params = per_prompt("sampling_params", sampling_params, len(prompts), None)
        model = self._name(lora_request)
        return [
            completion_body(model, prompt, one, max_model_len=self._max_model_len)
            for prompt, one in zip(prompts, params, strict=True)
        ]

    def _name(self, lora_request: Any) -> str:
        """An adapter is a model of its own name there."""
        if lora_request is None:
            return self._model
        name: str = lora_request.lora_name
        return name

    def _run(self, endpoint: str, bodies: list[Body], use_tqdm: ProgressBar) -> list[Any]:
        if not bodies:
            return []
        batch = self._jobs.wait(self._jobs.submit(endpoint, bodies), use_tqdm)
        return list(self._jobs.outputs(batch))


def attach(
    job_id: str,
    *,
    cluster: str | bool = True,
    api_key: str | None = None,
    use_tqdm: ProgressBar = True,
) -> list[Any]:
    """The outputs of a job, whoever submitted it; waits for its end. Raises `OctavoError`."""
    client = connect(cluster, api_key)
    try:
        jobs = ClusterJobs(client, window="24h")
        return list(jobs.outputs(jobs.wait(job_id, use_tqdm)))
    finally:
        client.close()


def connect(cluster: str | bool, api_key: str | None) -> BatchClient:
    """Raises `ConfigError` without an address."""
    url = os.environ.get("OCTAVO_URL", "") if cluster is True else cluster
    if not url or not isinstance(url, str):
        raise ConfigError(
            "give the address of the cluster: cluster='http://…', or cluster=True and the variable "
            "OCTAVO_URL"
        )
    key = api_key or os.environ.get("OCTAVO_API_KEY") or None
    return BatchClient(url.rstrip("/").removesuffix("/v1"), api_key=key)
