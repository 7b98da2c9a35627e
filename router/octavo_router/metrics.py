"""Prometheus metrics of the router.

Labels are bounded: status codes, fixed words, and the names of at most `MAX_LABELLED` deployments
that are there now; the rest of them count as "other".
"""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from octavo_router.admission.metrics import AdmissionMetrics
from octavo_router.health import Cause

_TTFT_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_DECISION_BUCKETS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05)
_LOAD_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_PREFIX = "octavo_router_"
MAX_LABELLED = 200
_OTHER = "other"


class RouterMetrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.admission = AdmissionMetrics(registry)
        self.requests = Counter(
            _PREFIX + "requests", "Answers to clients, by status.", ["code"], registry=registry
        )
        self.retries = Counter(
            _PREFIX + "retries", "Attempts on another replica.", registry=registry
        )
        self.ejections = Counter(
            _PREFIX + "ejections",
            "Times that a replica was left alone for a while, by cause.",
            ["cause"],
            registry=registry,
        )
        for cause in Cause:
            self.ejections.labels(cause)
        self.broken_streams = Counter(
            _PREFIX + "broken_streams",
            "Times that a replica broke a stream after its first byte.",
            registry=registry,
        )
        self.continued_streams = Counter(
            _PREFIX + "continued_streams",
            "Times that another replica went on with such a stream.",
            registry=registry,
        )
        self.resumable_answers = Counter(
            _PREFIX + "resumable_answers",
            "Answers asked for with an Idempotency-Key: begun, taken over from another router, "
            "followed (joined or repeated), not kept.",
            ["how"],
            registry=registry,
        )
        self.ttft = Histogram(
            _PREFIX + "time_to_first_byte_seconds",
            "From the request to the first byte of a streamed answer.",
            buckets=_TTFT_BUCKETS,
            registry=registry,
        )
        self.decision = Histogram(
            _PREFIX + "decision_seconds",
            "Hashing, index lookup and policy, without tokenization.",
            buckets=_DECISION_BUCKETS,
            registry=registry,
        )
        self.adapter_loads = Counter(
            _PREFIX + "adapter_loads",
            "Adapters that replicas were asked to load, by outcome.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("loaded", "failed"):
            self.adapter_loads.labels(outcome)
        self.adapter_load_seconds = Histogram(
            _PREFIX + "adapter_load_seconds",
            "How long such a load took.",
            buckets=_LOAD_BUCKETS,
            registry=registry,
        )
        prompt_characters = Counter(
            _PREFIX + "prompt_characters",
            "Characters of prompts: new ones were tokenized, of known ones the tokens were kept.",
            ["how"],
            registry=registry,
        )
        self.new_characters = prompt_characters.labels("new")
        self.known_characters = prompt_characters.labels("known")
        self.predicted_tokens = Counter(
            _PREFIX + "predicted_cached_tokens",
            "Cached tokens predicted, for answers that told the actual number.",
            registry=registry,
        )
        self.actual_tokens = Counter(
            _PREFIX + "actual_cached_tokens", "Cached tokens that replicas told.", registry=registry
        )
        self.prediction_error = Counter(
            _PREFIX + "cached_tokens_error",
            "Sum of |predicted - actual| cached tokens.",
            registry=registry,
        )
        self.distrusted = Counter(
            _PREFIX + "distrusted_replicas",
            "Times a replica's entries were forgotten because they were wrong.",
            registry=registry,
        )
        self.deployment_requests = Counter(
            _PREFIX + "deployment_requests",
            "Answers of each deployment's replicas, and 503 where none gave one, by status.",
            ["deployment", "code"],
            registry=registry,
        )
        self.deployment_replicas = Gauge(
            _PREFIX + "deployment_replicas",
            "Replicas known of each deployment.",
            ["deployment"],
            registry=registry,
        )
        self._labelled: dict[str, set[str]] = {}  # deployment -> codes
        self.replicas = Gauge(_PREFIX + "replicas", "Replicas known.", registry=registry)
        self.degraded = Gauge(_PREFIX + "degraded", "1 while Redis is away.", registry=registry)
        self.index_entries = Gauge(
            _PREFIX + "prefix_index_entries", "Blocks in the prefix index.", registry=registry
        )
        self.index_bytes = Gauge(
            _PREFIX + "prefix_index_bytes", "Estimated size of the prefix index.", registry=registry
        )
        self.index_refused = Gauge(
            _PREFIX + "prefix_index_refused", "Entries not taken: budget full.", registry=registry
        )

    def answered(self, deployment: str, status: int) -> None:
        """A request to a deployment was answered with `status`."""
        label, code = self._label(deployment), str(status)
        self._labelled.setdefault(label, set()).add(code)
        self.deployment_requests.labels(label, code).inc()

    def measure_deployments(self, num_replicas: Mapping[str, int]) -> None:
        """These are the deployments that there are; series of others end."""
        for gone in self._labelled.keys() - num_replicas.keys() - {_OTHER}:
            for code in self._labelled.pop(gone):
                self.deployment_requests.remove(gone, code)
        self.deployment_replicas.clear()
        for name, number in num_replicas.items():
            label = self._label(name)
            self._labelled.setdefault(label, set())
            self.deployment_replicas.labels(label).inc(number)

    def _label(self, deployment: str) -> str:
        is_shown = deployment in self._labelled or len(self._labelled) < MAX_LABELLED
        return deployment if is_shown else _OTHER

    def render(self) -> bytes:
        return generate_latest(self._registry)
