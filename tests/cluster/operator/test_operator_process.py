"""`octavo operator` as processes on this machine, against the cluster's API and a real Redis.

Pods need not run for this: what is asserted is what the operator writes, and what it does not.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families
from tests.cluster.kube import (
    DEPLOYMENT,
    LORA_ADAPTER,
    MODEL_DEPLOYMENT,
    Kube,
    Object,
    conditions,
    is_seen,
)

from octavo.local.ports import free_port
from octavo.local.redis_server import EmbeddedRedis
from octavo_operator.leader import LEASE, LeaseTimes
from octavo_protocol.keys import DEPLOYMENTS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[3]
NAMESPACE = "octavo-test-operator"
LEASES = "coordination.k8s.io/v1/Lease"
CHILDREN = (DEPLOYMENT, "v1/Service", "v1/ServiceAccount", "v1/Secret")


class OperatorProcess:
    """One `octavo operator`, which watches `NAMESPACE` alone."""

    def __init__(self, kube: Kube, redis_url: str, log: Path, identity: str = "first") -> None:
        self.kube = kube
        self.port = free_port()
        environment = {**os.environ, "KUBECONFIG": kube.kubeconfig, "OCTAVO_REDIS_URL": redis_url}
        flags = {
            "runtime-image": "none.invalid/octavo:1",
            "namespaces": NAMESPACE,
            "operator-namespace": NAMESPACE,
            "identity": identity,
            "health-port": str(self.port),
        }
        self.log = log / f"{identity}-{self.port}.log"
        with self.log.open("wb") as output:
            self.child = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "octavo",
                    "operator",
                    *(f"--{k}={v}" for k, v in flags.items()),
                ],
                env=environment,
                stderr=output,
                cwd=ROOT,
            )

    def wait_until_leading(self, seconds: float = 120) -> None:
        def leads() -> bool:
            return self.is_ready and self.holder == self.identity

        self.kube.wait(f"leading ({self.log.read_text()})", leads, seconds=seconds)

    @property
    def identity(self) -> str:
        return self.log.name.split("-")[0]

    @property
    def holder(self) -> str:
        lease = self.kube.get(LEASES, LEASE, NAMESPACE)
        return "" if lease is None else str(lease["spec"].get("holderIdentity"))

    @property
    def is_ready(self) -> bool:
        assert self.child.poll() is None, self.log.read_text()
        try:
            return self.fetch("/readyz") == "ok\n"
        except (urllib.error.URLError, ConnectionError):
            return False

    def fetch(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def calls(self) -> dict[tuple[str, str], float]:
        """Requests to the API server so far by (verb, resource), without leases."""
        return {
            (sample.labels["verb"], sample.labels["resource"]): sample.value
            for family in text_string_to_metric_families(self.fetch("/metrics"))
            for sample in family.samples
            if sample.name == "octavo_operator_api_calls_total"
            and sample.labels["resource"] != "leases"
        }

    def turns(self) -> float:
        families = text_string_to_metric_families(self.fetch("/metrics"))
        [count] = [
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == "octavo_operator_reconcile_seconds_count"
        ]
        return count

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> int:
        self.child.send_signal(sig)
        return self.child.wait(30)


class World:
    """A namespace of its own, a Redis, and the operators that a test started."""

    def __init__(self, kube: Kube, server: EmbeddedRedis, log: Path) -> None:
        self.kube = kube
        self.server = server
        self.redis = redis.Redis.from_url(server.url)
        self.log = log
        self.operators: list[OperatorProcess] = []

    def start(self, identity: str = "first") -> OperatorProcess:
        operator = OperatorProcess(self.kube, self.server.url, self.log, identity)
        self.operators.append(operator)
        return operator

    def lead(self, identity: str = "first") -> OperatorProcess:
        operator = self.start(identity)
        operator.wait_until_leading()
        return operator

    def apply(self, name: str, **spec: object) -> None:
        self.kube.apply(
            {
                "apiVersion": "octavo.dev/v1alpha1",
                "kind": "ModelDeployment",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {
                    "model": {"source": "file:///models/none"},
                    "replicas": 0,
                    "resources": {"gpu": {"count": 0}},
                    **spec,
                },
            }
        )

    def settled(self, name: str) -> Object:
        """The ModelDeployment once its status is about its spec and it is registered."""

        def look() -> Object | None:
            found = self.kube.get(MODEL_DEPLOYMENT, name, NAMESPACE)
            is_settled = found is not None and is_seen(found) and name in self.registered()
            return found if is_settled else None

        return self.kube.wait(f"{name} settled", look, seconds=120, namespace=NAMESPACE)

    def registered(self) -> set[str]:
        fields = cast(list[bytes], self.redis.hkeys(DEPLOYMENTS))
        return {field.decode().removeprefix(f"{NAMESPACE}/") for field in fields}

    def children(self, name: str) -> set[str]:
        """`Kind` of those of `CHILDREN` that belong to a ModelDeployment."""
        label = {"octavo.dev/model-deployment": name}
        return {
            kind.rpartition("/")[2] for kind in CHILDREN if self.kube.list(kind, NAMESPACE, **label)
        }

    def clear(self) -> None:
        for operator in self.operators:
            if operator.child.poll() is None:
                operator.stop(signal.SIGKILL)
        for each in self.kube.list(MODEL_DEPLOYMENT, NAMESPACE):
            self.kube.delete(MODEL_DEPLOYMENT, each["metadata"]["name"], NAMESPACE)
        self.kube.delete(LEASES, LEASE, NAMESPACE)
        self.redis.flushall()


@pytest.fixture(scope="module")
def namespace(kube: Kube) -> Iterator[Kube]:
    kube.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    kube.kubectl("wait", "--for=condition=Established", "-f", str(ROOT / "crds"), "--timeout=30s")
    kube.client.resources.invalidate_cache()
    yield kube
    kube.delete("v1/Namespace", NAMESPACE)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def world(namespace: Kube, server: EmbeddedRedis, tmp_path: Path) -> Iterator[World]:
    world = World(namespace, server, tmp_path)
    yield world
    world.clear()
    world.redis.close()


def test_a_restarted_operator_writes_nothing_where_nothing_changed(world: World) -> None:
    first = world.lead()
    for name in ("one", "two"):
        world.apply(name)
        world.settled(name)
    assert world.children("one") == {"Deployment", "Service", "ServiceAccount", "Secret"}
    assert first.stop() == 0
    second = world.lead("second")
    world.kube.wait("a turn of each", lambda: second.turns() >= 2, seconds=90)
    written = {call: count for call, count in second.calls().items() if call[0] != "get"}
    # Secrets cannot be watched: each is compared once, by a patch that changes nothing.
    assert written == {("post", "selfsubjectaccessreviews"): 2, ("patch", "secrets"): 2}


def test_at_rest_the_api_server_is_not_called(world: World) -> None:
    operator = world.lead()
    world.apply("rests")
    world.settled("rests")
    time.sleep(12)  # what was just written is trusted for 10 s, then there is a last turn
    calls, turns = operator.calls(), operator.turns()
    time.sleep(10)
    assert (operator.calls(), operator.turns()) == (calls, turns)


def test_a_name_that_was_given_up_and_an_adapter_without_its_deployment_are_told_at_once(
    world: World,
) -> None:
    def ready(kind: str, name: str) -> str:
        found = world.kube.get(kind, name, NAMESPACE)
        return str(conditions(found or {}).get("Ready", {}).get("reason"))

    def becomes(kind: str, name: str, reason: str) -> None:
        def is_told() -> bool:
            return ready(kind, name) == reason

        world.kube.wait(f"{name}: {reason}", is_told, seconds=90, namespace=NAMESPACE)

    world.lead()
    world.kube.apply(
        {
            "apiVersion": "octavo.dev/v1alpha1",
            "kind": "LoraAdapter",
            "metadata": {"name": "law", "namespace": NAMESPACE},
            "spec": {"target": {"name": "older"}, "model": {"source": "hf://org/law"}},
        }
    )
    becomes(LORA_ADAPTER, "law", "TargetMissing")
    world.apply("older", servedNames=["shared"], lora={})
    becomes(LORA_ADAPTER, "law", "NoReplicaReady")
    world.settled("older")
    time.sleep(1.1)  # creation times are whole seconds
    world.apply("younger", servedNames=["shared"])
    becomes(MODEL_DEPLOYMENT, "younger", "NameTaken")
    world.apply("older", servedNames=["own"], lora={})
    becomes(MODEL_DEPLOYMENT, "younger", "ScaledToZero")
    world.kube.delete(MODEL_DEPLOYMENT, "older", NAMESPACE)
    becomes(LORA_ADAPTER, "law", "TargetMissing")
    world.kube.delete(LORA_ADAPTER, "law", NAMESPACE)


def test_an_object_that_somebody_else_made_is_not_taken_over(world: World) -> None:
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "taken", "namespace": NAMESPACE},
        "spec": {"ports": [{"port": 1, "protocol": "TCP"}], "selector": {"app": "theirs"}},
    }
    before = world.kube.apply(theirs)
    world.lead()
    world.apply("taken")

    def refusal() -> Object | None:
        found = conditions(world.settled("taken")).get("Degraded")
        return found if found is not None and found["reason"] == "ApplyFailed" else None

    told = world.kube.wait("told", refusal, seconds=90, namespace=NAMESPACE)
    assert "Service taken: one of that name exists" in told["message"]
    found = world.kube.get("v1/Service", "taken", NAMESPACE)
    assert found is not None
    assert found["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert world.children("taken") == {"Deployment", "ServiceAccount", "Secret"}
    world.kube.delete("v1/Service", "taken", NAMESPACE)
    world.kube.wait(
        "made when it is free", lambda: "Service" in world.children("taken"), seconds=90
    )


def test_a_deployment_that_is_deleted_and_made_again_gets_children_of_its_own(world: World) -> None:
    world.lead()
    world.apply("again")
    world.settled("again")
    world.kube.delete(MODEL_DEPLOYMENT, "again", NAMESPACE)
    world.apply("again")
    uid = world.settled("again")["metadata"]["uid"]

    def all_are_its_own() -> bool:
        found = [world.kube.get(kind, "again", NAMESPACE) for kind in CHILDREN[:3]]
        owners = [each and each["metadata"]["ownerReferences"][0]["uid"] for each in found]
        return owners == [uid] * 3

    world.kube.wait("its own children", all_are_its_own, seconds=120, namespace=NAMESPACE)


def test_what_was_deleted_while_no_operator_ran_is_swept_from_the_registry(world: World) -> None:
    first = world.lead()
    for name in ("stays", "goes"):
        world.apply(name)
        world.settled(name)
    first.stop(signal.SIGKILL)
    world.kube.delete(MODEL_DEPLOYMENT, "goes", NAMESPACE)
    assert world.registered() == {"stays", "goes"}
    world.lead()  # of the same name: the lease is its own
    world.kube.wait("swept", lambda: world.registered() == {"stays"}, seconds=90)
    world.kube.wait("nothing left", lambda: not world.children("goes"), seconds=120)


def test_the_standby_takes_over_when_the_leader_is_killed(world: World) -> None:
    first = world.lead()
    standby = world.start("standby")
    world.kube.wait("standing by", lambda: standby.is_ready, seconds=90)
    assert standby.calls() == {}, "a standby watches nothing"
    first.stop(signal.SIGKILL)
    world.apply("orphan")
    times = LeaseTimes()
    standby.wait_until_leading(times.duration_s + times.retry_s + 15)
    world.settled("orphan")


def test_a_leader_that_stops_hands_over_at_once(world: World) -> None:
    first = world.lead()
    standby = world.start("standby")
    world.kube.wait("standing by", lambda: standby.is_ready, seconds=90)
    assert first.stop() == 0
    assert standby.holder in ("", "standby")
    standby.wait_until_leading(LeaseTimes().retry_s + 10)


def test_a_leader_whose_lease_was_taken_ends(world: World) -> None:
    operator = world.lead()
    body = {"spec": {"holderIdentity": "thief"}}
    world.kube.patch(LEASES, LEASE, NAMESPACE, body)
    assert operator.child.wait(LeaseTimes().renew_s + 15) == 2
    assert "thief holds the lease now" in operator.log.read_text()
