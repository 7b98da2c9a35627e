"""The deployments that this router serves, and which of them a model's name means."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator

from octavo_protocol.errors import NotFoundError, UnavailableError, ValidationError
from octavo_protocol.keys import RECORD_TTL_S, Keys, deployment_field
from octavo_protocol.records import DeploymentRecord
from octavo_router.deployment import Deployment
from octavo_router.health import MAX_EJECTED_SHARE
from octavo_router.policies.weights import DEFAULT_WEIGHTS, PolicyWeights
from octavo_router.prefix_index import IndexBudget

logger = logging.getLogger(__name__)

_MAX_NAMED = 20  # models that an error message lists


class Deployments:
    """Deployments by name, `{namespace}/{deployment}`: one that is given, or a cluster's registry.

    namespaces: only these are taken from the registry; empty: all. is_complete: the registry has
    been read, so that a model which is not in it does not exist.

    A registered name belongs to the oldest deployment that has it, a model's before an adapter's.
    Names that only replicas tell of come after every registered one.
    """

    def __init__(
        self,
        *,
        budget: IndexBudget,
        namespaces: Collection[str] = (),
        weights: PolicyWeights = DEFAULT_WEIGHTS,
        max_ejected_share: float = MAX_EJECTED_SHARE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget = budget
        self._namespaces = frozenset(namespaces)
        self._weights = weights
        self._max_ejected_share = max_ejected_share
        self._clock = clock
        self._deployments: dict[str, Deployment] = {}
        self._registry: dict[str, DeploymentRecord] = {}
        self._missing_since: float | None = None
        self._names: dict[str, Deployment] | None = None
        self._shadowed: set[tuple[str, str]] = set()
        self.is_complete = False

    def __iter__(self) -> Iterator[Deployment]:
        return iter(list(self._deployments.values()))

    def __len__(self) -> int:
        return len(self._deployments)

    def get(self, name: str) -> Deployment | None:
        return self._deployments.get(name)

    def add(self, keys: Keys) -> Deployment:
        """A deployment that is there without a registry."""
        deployment = Deployment(
            keys,
            budget=self._budget,
            weights=self._weights,
            max_ejected_share=self._max_ejected_share,
            clock=self._clock,
        )
        self._deployments[deployment.name] = deployment
        self._names = None
        return deployment

    def take_registry(self, records: Iterable[DeploymentRecord]) -> None:
        """Takes the newest registry.

        An empty one is what a Redis that was restarted empty shows: then a deployment stays for as
        long as it has replicas, and for one time to live without.
        """
        self.is_complete = True
        registry = {
            deployment_field(record.namespace, record.deployment): record
            for record in records
            if not self._namespaces or record.namespace in self._namespaces
        }
        if registry or not self._deployments:
            self._missing_since = None
        elif self._missing_since is None:
            self._missing_since = self._clock()
        gone = self._deployments.keys() - registry.keys()
        if self._missing_since is not None:
            is_over = self._clock() - self._missing_since >= RECORD_TTL_S
            gone = {name for name in gone if is_over and not len(self._deployments[name].replicas)}
        for name in gone:
            self._deployments.pop(name).close()
            self._registry.pop(name, None)
            self._names = None
        for name, record in registry.items():
            if record != self._registry.get(name):
                self._update(name, record)

    def take_replicas(self, deployment: Deployment, raw: dict[str, bytes]) -> None:
        """All records of the deployment's replicas, by replica id."""
        before = deployment.replicas.served_names()
        deployment.take(raw)
        if deployment.replicas.served_names() != before:
            self._names = None

    def find(self, model: str | None) -> Deployment:
        """The deployment of a request for `model`; None or empty: the only one.

        Raises `NotFoundError` for a name that nobody serves, `ValidationError` for no name where
        several deployments are, `UnavailableError` while nothing is known.
        """
        return self._find(model) if model else self._only()

    def is_ready(self, model: str) -> bool:
        """Whether a replica could answer for `model` now."""
        deployment = self.names().get(model)
        return deployment is not None and deployment.replicas.is_any_usable(model)

    def names(self) -> dict[str, Deployment]:
        """Whom each name of a model means."""
        if self._names is None:
            self._names = self._index_names()
        return self._names

    def _find(self, model: str) -> Deployment:
        names = self.names()
        deployment = names.get(model)
        if deployment is not None:
            return deployment
        if not names and not self.is_complete:
            for each in self:
                each.check(None)
            raise UnavailableError("no deployment is known yet; try again in a moment")
        raise NotFoundError(
            f"the model {model!r} does not exist; there are {_listed(names)}",
            parameter="model",
            code="model_not_found",
        )

    def _only(self) -> Deployment:
        if not self._deployments:
            raise UnavailableError("no deployment is known yet; try again in a moment")
        if len(self._deployments) > 1:
            raise ValidationError(
                f"model must name one of {_listed(self.names())}", parameter="model"
            )
        return next(iter(self._deployments.values()))

    def _update(self, name: str, record: DeploymentRecord) -> None:
        deployment = self._deployments.get(name) or self.add(
            Keys(record.namespace, record.deployment)
        )
        deployment.served_names = tuple(record.served_names)
        deployment.created_at = record.created_at
        deployment.replicas.adapters.take_sources(record.adapters)
        deployment.set_policy(record.policy)
        self._registry[name] = record
        self._names = None

    def _index_names(self) -> dict[str, Deployment]:
        names: dict[str, Deployment] = {}
        by_age = sorted(self, key=lambda each: (each.created_at, each.name))
        shadowed = set()
        for deployment in by_age:
            for name in deployment.served_names:
                owner = names.setdefault(name, deployment)
                if owner is not deployment:
                    shadowed.add((name, deployment.name))
                    self._warn(name, owner, deployment)
        for deployment in by_age:
            for name in deployment.replicas.adapters.sources:
                names.setdefault(name, deployment)
        for deployment in by_age:
            for name in sorted(deployment.replicas.served_names()):
                names.setdefault(name, deployment)
        self._shadowed = shadowed
        return names

    def _warn(self, name: str, owner: Deployment, other: Deployment) -> None:
        if (name, other.name) not in self._shadowed:
            logger.warning(
                "the model name %r of deployment %s belongs to %s, which is older: give one of"
                " them another name",
                name,
                other.name,
                owner.name,
            )


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    shown = ", ".join(repr(name) for name in ordered[:_MAX_NAMED])
    more = len(ordered) - _MAX_NAMED
    return (shown or "none") + (f" and {more} more" if more > 0 else "")
