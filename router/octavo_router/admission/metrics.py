"""Prometheus metrics of tenants and queues. Labels are bounded: the names of at most
`MAX_LABELLED` tenants and deployments; the rest count as "other".
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_PREFIX = "octavo_router_"
_OTHER = "other"
MAX_LABELLED = 200
_WAIT_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class AdmissionMetrics:
    """Written into the registry of the router's metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._tenants: set[str] = set()
        self._requests = Counter(
            _PREFIX + "tenant_requests",
            "Requests of each tenant: admitted, or refused, by reason.",
            ["tenant", "outcome"],
            registry=registry,
        )
        self._tokens = Counter(
            _PREFIX + "tenant_tokens",
            "Tokens of each tenant: prompt, cached (of those), output.",
            ["tenant", "kind"],
            registry=registry,
        )
        self._queued = Gauge(
            _PREFIX + "queue_requests",
            "Requests that wait in this router, by deployment.",
            ["deployment"],
            registry=registry,
        )
        self._queued_tokens = Gauge(
            _PREFIX + "queue_tokens", "Tokens of those requests.", ["deployment"], registry=registry
        )
        self.wait = Histogram(
            _PREFIX + "queue_wait_seconds",
            "How long requests waited in this router, of those that did.",
            buckets=_WAIT_BUCKETS,
            registry=registry,
        )
        self.stale = Gauge(
            _PREFIX + "tenants_stale",
            "1 while the file of tenants has a newer version that is wrong.",
            registry=registry,
        )
        self.local = Gauge(
            _PREFIX + "limits_degraded",
            "1 while Redis is away and this router counts limits for itself.",
            registry=registry,
        )
        self.lost = Gauge(
            _PREFIX + "usage_lost",
            "Usage records that Redis could not be told, since the start.",
            registry=registry,
        )

    def admitted(self, tenant: str) -> None:
        self._requests.labels(self._label(tenant), "admitted").inc()

    def refused(self, tenant: str, reason: str) -> None:
        self._requests.labels(self._label(tenant), reason).inc()

    def used(self, tenant: str, *, prompt: int, cached: int, output: int) -> None:
        label = self._label(tenant)
        for kind, number in (("prompt", prompt), ("cached", cached), ("output", output)):
            self._tokens.labels(label, kind).inc(number)

    def queues(self, lengths: Iterable[tuple[str, int, int]]) -> None:
        """Requests and tokens that wait for each deployment."""
        self._queued.clear()
        self._queued_tokens.clear()
        for number, (name, num_requests, num_tokens) in enumerate(lengths):
            label = name if number < MAX_LABELLED else _OTHER
            self._queued.labels(label).inc(num_requests)
            self._queued_tokens.labels(label).inc(num_tokens)

    def _label(self, tenant: str) -> str:
        if tenant in self._tenants:
            return tenant
        if len(self._tenants) >= MAX_LABELLED:
            return _OTHER
        self._tenants.add(tenant)
        return tenant
