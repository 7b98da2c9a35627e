"""An `LLM` whose engine is a cluster."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from types import TracebackType
from typing import Any, Self

from octavo.batch_client import BatchClient
from octavo.cluster.bodies import Body, beam_body, chat_body, completion_body
from octavo.cluster.jobs import ClusterJobs
from octavo.cluster.outputs import completions_of_beams, output_of
from octavo.cluster.pooling_calls import ClusterPoolingCalls
from octavo.former_calls import warn_of_beam_search, with_token_ids
from octavo.progress import ProgressBar
from octavo.prompts import as_list
from octavo.request_queue import per_prompt
from octavo.tokenization import TokenizationOptions
from octavo_protocol.beam_search import BeamSearchOutput, BeamSearchParams
from octavo_protocol.errors import ConfigError, NotFoundError, ValidationError
from octavo_protocol.outputs import RequestOutput
from octavo_protocol.sampling_params import SamplingParams

_COMPLETIONS, _CHAT = "/v1/completions", "/v1/chat/completions"
Params = SamplingParams | Sequence[SamplingParams] | None


class ClusterLLM(ClusterPoolingCalls):
    """What `LLM(model, cluster=…)` makes: its calls run as durable batches of the platform at
    `cluster`; their results are those of an `LLM` in process.

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

    def submit(
        self,
        prompts: Any,
        sampling_params: Params = None,
        *,
        lora_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """As `generate`, without waiting: the id of a job for `results` or `LLM.attach`.

        Prompts of an iterator go up as it gives them, so that memory does not grow with them.
        """
        bodies = self._completions(prompts, sampling_params, lora_request, tokenization_kwargs)
        first = next(bodies, None)
        if first is None:
            raise ValidationError("prompts must not be empty", parameter="prompts")
        return self._jobs.submit(_COMPLETIONS, chain([first], bodies))

    def results(self, job_id: str, use_tqdm: ProgressBar = True) -> Iterator[Any]:
        """The outputs of a job one by one, as they come down; waits for its end."""
        return self._jobs.outputs(self._jobs.wait(job_id, use_tqdm))

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
        tokenization_kwargs: Mapping[str, Any] | None = None,
        prompt_token_ids: Any = None,
    ) -> list[RequestOutput]:
        """Completes every prompt; results are in the order of the prompts."""
        originals = with_token_ids(prompts, prompt_token_ids)
        if isinstance(sampling_params, BeamSearchParams):
            warn_of_beam_search()
            searches = self._searches(as_list(originals), sampling_params, lora_request)
            return self._run(_COMPLETIONS, searches, use_tqdm, completions_of_beams)
        bodies = self._completions(originals, sampling_params, lora_request, tokenization_kwargs)
        return _with_adapters(self._run(_COMPLETIONS, bodies, use_tqdm), lora_request)

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
    ) -> list[RequestOutput]:
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
        models = self._models(lora_request, len(many))
        bodies = (
            chat_body(model, each, one, options, max_model_len=self._max_model_len)
            for model, each, one in zip(models, many, params, strict=True)
        )
        return _with_adapters(self._run(_CHAT, bodies, use_tqdm), lora_request)

    def beam_search(
        self,
        prompts: Any,
        params: BeamSearchParams,
        lora_request: Any = None,
        use_tqdm: ProgressBar = False,
        concurrency_limit: int | None = None,
    ) -> list[BeamSearchOutput]:
        """The `params.beam_width` best continuations of each prompt, best first.

        concurrency_limit: without effect; the cluster searches as many as it has room for.
        """
        if not isinstance(params, BeamSearchParams):
            raise TypeError(f"expected BeamSearchParams, got {type(params).__name__}")
        if concurrency_limit is not None and concurrency_limit < 1:
            raise ValidationError(
                "concurrency_limit must be at least 1", parameter="concurrency_limit"
            )
        originals = as_list(prompts)
        searches = self._searches(originals, params, lora_request)
        outputs: list[BeamSearchOutput] = self._run(_COMPLETIONS, searches, use_tqdm)
        adapters = per_prompt("lora_request", lora_request, len(originals), None)
        for original, adapter, output in zip(originals, adapters, outputs, strict=True):
            for beam in output.sequences:
                beam.orig_prompt, beam.lora_request = original, adapter
        return outputs

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
        self,
        prompts: Any,
        sampling_params: Params,
        lora_request: Any,
        tokenization_kwargs: Mapping[str, Any] | None,
    ) -> Iterator[Body]:
        options = TokenizationOptions.parse(tokenization_kwargs)
        for model, prompt, params in self._asked(prompts, sampling_params, lora_request):
            yield completion_body(
                model, prompt, params, max_model_len=self._max_model_len, options=options
            )

    def _asked(
        self, prompts: Any, sampling_params: Params, lora_request: Any
    ) -> Iterable[tuple[str, Any, SamplingParams | None]]:
        """(model, prompt, parameters) of each request; an iterator is read as it goes."""
        if isinstance(prompts, Iterator):
            if isinstance(sampling_params, Sequence) or isinstance(lora_request, Sequence):
                prompts = list(prompts)
            else:
                [model] = self._models(lora_request, 1)
                return ((model, prompt, sampling_params) for prompt in prompts)
        originals = as_list(prompts)
        params = per_prompt("sampling_params", sampling_params, len(originals), None)
        return zip(self._models(lora_request, len(originals)), originals, params, strict=True)

    def _searches(
        self, prompts: list[Any], params: BeamSearchParams, lora_request: Any
    ) -> Iterator[Body]:
        for model, prompt in zip(self._models(lora_request, len(prompts)), prompts, strict=True):
            yield beam_body(model, prompt, params)

    def _models(self, lora_request: Any, count: int) -> list[str]:
        """The model of each request: an adapter is one of its own name there."""
        requests = per_prompt("lora_request", lora_request, count, None)
        return [self._model if each is None else each.lora_name for each in requests]

    def _run(
        self,
        endpoint: str,
        bodies: Iterator[Body],
        use_tqdm: ProgressBar,
        make: Callable[..., Any] = output_of,
    ) -> list[Any]:
        first = next(bodies, None)
        if first is None:
            return []
        job_id = self._jobs.submit(endpoint, chain([first], bodies))
        return list(self._jobs.outputs(self._jobs.wait(job_id, use_tqdm), make))


def _with_adapters(outputs: list[RequestOutput], lora_request: Any) -> list[RequestOutput]:
    """Each output says which adapter it came from, as in process."""
    adapters = per_prompt("lora_request", lora_request, len(outputs), None)
    for output, adapter in zip(outputs, adapters, strict=True):
        output.lora_request = adapter
    return outputs


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
