"""Prometheus metrics of one replica: what the API process counts, and the engine's statistics."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, generate_latest

from octavo_protocol.outputs import RequestOutput
from octavo_protocol.pooling import PoolingRequestOutput
from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.engine.async_llm import AsyncLLM
from octavo_runtime.engine.messages import StepOutputs
from octavo_runtime.server.octavo_metrics import MetricNames, OctavoNames
from octavo_runtime.server.options import ApiOptions
from octavo_runtime.server.token_times import TokenTimes
from octavo_runtime.server.vllm_metrics import VllmNames


class ServerMetrics:
    """Tells every event to each set of names that the options choose.

    model: value of the label `model_name`. vLLM's names appear when the engine is ready, since its
    configuration is among them.
    """

    def __init__(
        self, llm: AsyncLLM, options: ApiOptions | None = None, *, model: str = "model"
    ) -> None:
        self._llm = llm
        self._options = options or ApiOptions()
        self._model = model
        self._registry = CollectorRegistry()
        self._names: list[MetricNames] = []
        if self._options.metrics_names != "vllm":
            self._names.append(OctavoNames(llm, self._registry))
        self._lacks_vllm = self._options.metrics_names != "octavo"
        self._responses = Counter(
            "octavo_runtime_http_responses",
            "HTTP answers, by status.",
            ["code"],
            registry=self._registry,
        )
        self._times = TokenTimes(self._first_token, self._gap)
        llm.on_step(self._stepped)

    def started(self, request_id: str, params: SamplingParams) -> None:
        """A request is handed to the engine; `ended` must follow."""
        self._complete()
        self._times.start(request_id, params.n)

    def observe(self, output: RequestOutput, params: SamplingParams) -> None:
        """Takes in one output, whole or delta: ends of sequences, and of the request."""
        for completion in output.outputs:
            if completion.finish_reason is not None:
                for names in self._names:
                    names.sequence_ended(completion.finish_reason)
        if output.finished:
            for names in self._names:
                names.request_ended(output, params)

    def ended(self, request_id: str, params: SamplingParams, *, finished: bool) -> None:
        """The request is over; finished: the engine ended it, not the client or an error."""
        self._times.end(request_id, params.n)
        if not finished:
            for names in self._names:
                names.aborted()

    def pooled(self, output: PoolingRequestOutput[Any] | None) -> None:
        """A prompt was pooled; None: its client or an error ended it."""
        self._complete()
        for names in self._names:
            if output is None:
                names.aborted()
            else:
                names.sequence_ended("stop")
                names.prompt_ended(output)

    def responded(self, status: int) -> None:
        self._responses.labels(str(status)).inc()

    def render(self) -> bytes:
        self._complete()
        return generate_latest(self._registry)

    def _complete(self) -> None:
        if self._lacks_vllm and self._llm.info is not None:
            self._lacks_vllm = False
            self._names.append(
                VllmNames(
                    self._llm,
                    self._llm.info,
                    self._registry,
                    model=self._model,
                    with_old=self._options.show_old_metrics,
                )
            )

    def _stepped(self, step: StepOutputs) -> None:
        num_tokens = sum(len(output.new_token_ids) for output in step.outputs)
        for names in self._names:
            names.generated(num_tokens)
        self._times.took(step)

    def _first_token(self, seconds: float) -> None:
        for names in self._names:
            names.first_token(seconds)

    def _gap(self, seconds: float) -> None:
        for names in self._names:
            names.gap(seconds)
