"""Scaling, rollouts and faults while clients stream without pause: what they see is counted.

One deployment serves all tests of this file; each begins when it is ready as the test wants it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.cluster import faults
from tests.cluster.environment import Scripts
from tests.cluster.installation import NAMESPACE, OPERATOR, REDIS, ROUTER, SYSTEM, Installation
from tests.cluster.kube import (
    DEPLOYMENT,
    MODEL_DEPLOYMENT,
    Kube,
    Object,
    conditions,
    is_seen,
    is_true,
)
from tests.cluster.model_deployments import ModelDeployments
from tests.cluster.report import Report
from tests.cluster.streaming_load import Load, streaming_load

pytestmark = [pytest.mark.cluster, pytest.mark.model, pytest.mark.timeout(900)]

NAME = "under-load"
CLIENTS = 2
# What a test needs to have sent to mean anything.
AT_LEAST = 10

Loaded = Callable[[str], Any]


@pytest.fixture(scope="module")
def serving(octavo: Installation) -> Iterator[ModelDeployments]:
    made = ModelDeployments(octavo.kube, NAMESPACE, octavo.router_url)
    made.apply(NAME)
    yield made
    made.delete_all()


@pytest.fixture
def under_load(serving: ModelDeployments, report: Report) -> Loaded:
    """A context of constant load; its numbers go into the report under a scenario's name."""

    @contextmanager
    def context(scenario: str) -> Iterator[Load]:
        with streaming_load(serving.router_url, NAME, threads=CLIENTS) as load:
            serving.kube.wait("first answers", lambda: len(load.answers) >= CLIENTS, seconds=120)
            yield load
        report.add(scenario, **load.report())

    return context


def _ready_with(serving: ModelDeployments, replicas: int) -> None:
    found = serving.get(NAME)
    if found["spec"]["replicas"] != replicas:
        _scale(serving.kube, replicas)
    serving.wait_until_ready(NAME, replicas=replicas)


def _scale(kube: Kube, replicas: int) -> None:
    kube.kubectl("scale", "-n", NAMESPACE, f"md/{NAME}", f"--replicas={replicas}")


def _ready_replicas(found: Object) -> int:
    ready: int = found["status"]["readyReplicas"]
    return ready


def _template(serving: ModelDeployments) -> Object:
    found = serving.kube.get(DEPLOYMENT, NAME, NAMESPACE)
    assert found is not None
    template: Object = found["spec"]["template"]["spec"]["containers"][0]
    return template


def test_scaling_from_one_to_three_and_back_loses_no_request(
    serving: ModelDeployments, under_load: Loaded, report: Report
) -> None:
    _ready_with(serving, 1)
    scenario = "scale 1 to 3 to 1"
    with under_load(scenario) as load:
        with report.step(scenario, "1 to 3"):
            _scale(serving.kube, 3)
            serving.wait_until_ready(NAME, replicas=3)
        with report.step(scenario, "3 to 1"):
            _scale(serving.kube, 1)
            serving.wait_until_ready(NAME, replicas=1)
    load.assert_nothing_lost(at_least=AT_LEAST)


def test_a_rollout_of_new_settings_loses_no_request(
    serving: ModelDeployments, under_load: Loaded, report: Report
) -> None:
    _ready_with(serving, 1)
    scenario = "rollout of settings"
    before = {pod["metadata"]["name"] for pod in serving.pods(NAME)}
    with under_load(scenario) as load, report.step(scenario, "rollout"):
        _change(serving, {"engine": {"maxNumSeqs": 6}})
        serving.wait_until_ready(NAME)
    load.assert_nothing_lost(at_least=AT_LEAST)
    arguments = _template(serving)["args"]
    assert arguments[arguments.index("--max-num-seqs") + 1] == "6"
    assert before.isdisjoint(pod["metadata"]["name"] for pod in serving.pods(NAME))


def test_a_rollout_of_a_new_image_goes_on_while_the_operator_is_dead(
    octavo: Installation,
    serving: ModelDeployments,
    under_load: Loaded,
    report: Report,
    other_runtime_image: str,
) -> None:
    _ready_with(serving, 1)
    scenario = "rollout of an image, operator killed"
    with under_load(scenario) as load, report.step(scenario, "rollout"):
        _change(serving, {"image": other_runtime_image})
        serving.wait(NAME, "is being replaced", lambda _: len(serving.pods(NAME)) > 1)
        leader = octavo.leader
        octavo.kube.delete("v1/Pod", leader, SYSTEM, gracePeriodSeconds=0)
        serving.wait_until_ready(NAME)
    load.assert_nothing_lost(at_least=AT_LEAST)
    assert _template(serving)["image"] == other_runtime_image
    assert octavo.leader != leader
    octavo.wait_until_ready(OPERATOR)


def test_a_killed_replica_is_replaced_and_its_streams_go_on_elsewhere(
    serving: ModelDeployments, under_load: Loaded, report: Report
) -> None:
    _ready_with(serving, 2)
    scenario = "replica killed"
    victim = serving.pods(NAME)[0]["metadata"]["name"]
    with under_load(scenario) as load, report.step(scenario, "killed to ready"):
        serving.kube.delete("v1/Pod", victim, NAMESPACE, gracePeriodSeconds=0)
        serving.wait(NAME, "has lost a replica", lambda found: _ready_replicas(found) < 2)
        serving.wait_until_ready(NAME, replicas=2)
    load.assert_nothing_lost(at_least=AT_LEAST)


def test_a_killed_engine_process_is_replaced_and_its_streams_go_on_elsewhere(
    serving: ModelDeployments, under_load: Loaded, report: Report
) -> None:
    _ready_with(serving, 2)
    scenario = "engine process killed"
    victim = serving.pods(NAME)[0]["metadata"]["name"]

    def restarts() -> int:
        pod = serving.kube.get("v1/Pod", victim, NAMESPACE)
        assert pod is not None, f"the pod {victim} was replaced"
        count: int = pod["status"]["containerStatuses"][0]["restartCount"]
        return count

    with under_load(scenario) as load, report.step(scenario, "killed to ready"):
        before = restarts()
        # All but process 1, which is the API process, and the shell itself.
        serving.kube.kubectl("exec", "-n", NAMESPACE, victim, "--", "bash", "-c", "kill -9 -1")
        serving.kube.wait("restarted", lambda: restarts() > before, seconds=120)
        serving.wait_until_ready(NAME, replicas=2)
    load.assert_nothing_lost(at_least=CLIENTS)


def test_a_rollout_of_the_router_loses_no_request(
    octavo: Installation, serving: ModelDeployments, under_load: Loaded, report: Report
) -> None:
    _ready_with(serving, 2)
    scenario = "rollout of the router"
    with under_load(scenario) as load, report.step(scenario, "rollout"):
        octavo.kube.kubectl("rollout", "restart", "-n", SYSTEM, f"deployment/{ROUTER}")
        octavo.wait_until_ready(ROUTER)
        octavo.kube.wait("old ones gone", lambda: len(octavo.pods("router")) == 2, seconds=90)
    load.assert_nothing_lost(at_least=AT_LEAST)


def test_a_restart_of_redis_loses_no_request_and_the_status_recovers(
    octavo: Installation, serving: ModelDeployments, under_load: Loaded, report: Report
) -> None:
    """It comes back empty: replicas, operator and router write again what they know."""
    _ready_with(serving, 2)
    scenario = "Redis restarted, empty"
    with under_load(scenario) as load:
        (redis,) = octavo.pods("redis")

        def is_replaced() -> bool:
            found = octavo.kube.get("v1/Pod", f"{REDIS}-0", SYSTEM)
            if found is None or found["metadata"]["uid"] == redis["metadata"]["uid"]:
                return False
            return conditions(found).get("Ready", {}).get("status") == "True"

        with report.step(scenario, "Redis away"):
            octavo.kube.delete("v1/Pod", redis["metadata"]["name"], SYSTEM)
            octavo.kube.wait("Redis is back", is_replaced, seconds=90, namespace=SYSTEM)
        with report.step(scenario, "back to registered"):
            serving.wait_for_condition(NAME, "Registered", "True")
            serving.wait_until_ready(NAME, replicas=2)
        served = len(load.answers)
        octavo.kube.wait("more answers", lambda: len(load.answers) > served + 4, seconds=120)
    load.assert_nothing_lost(at_least=AT_LEAST)
    with serving.openai() as client:
        assert [each.id for each in client.models.list()] == [NAME]


def test_a_restart_of_the_api_server_loses_no_request_and_the_operator_goes_on(
    octavo: Installation,
    serving: ModelDeployments,
    under_load: Loaded,
    report: Report,
    scripts: Scripts | None,
) -> None:
    if scripts is None:
        pytest.skip("only the scripts' API server can be killed from here")
    _ready_with(serving, 2)
    scenario = "API server restarted"
    with under_load(scenario) as load, report.step(scenario, "kill to scaled"):
        faults.kill_api_server()

        def scaled() -> Object:
            return serving.kube.patch(MODEL_DEPLOYMENT, NAME, NAMESPACE, {"spec": {"replicas": 1}})

        serving.kube.wait("the API server is back", scaled, seconds=120)
        serving.wait_until_ready(NAME, replicas=1)
    load.assert_nothing_lost(at_least=AT_LEAST)
    octavo.wait_until_ready(OPERATOR)


@pytest.mark.timeout(600)
def test_a_node_whose_kubelet_stops_costs_no_request_and_shows_in_the_status(
    octavo: Installation,
    serving: ModelDeployments,
    under_load: Loaded,
    report: Report,
    scripts: Scripts | None,
) -> None:
    if scripts is None:
        pytest.skip("only the scripts' nodes can be halted from here")
    _ready_with(serving, 2)
    nodes = {pod["spec"]["nodeName"] for pod in serving.pods(NAME)}
    assert len(nodes) == 2, "replicas prefer different nodes"
    # Where all routers are on one node, halting that one would leave their Service empty.
    routers = {pod["spec"]["nodeName"] for pod in octavo.pods("router")}
    halted = min(node for node in nodes if routers - {node})
    scenario = "kubelet stopped"
    with under_load(scenario) as load:
        with faults.stopped_kubelet(halted), report.step(scenario, "stopped to noticed"):
            found = serving.wait(NAME, "has lost it", lambda each: _ready_replicas(each) < 2)
            assert _ready_replicas(found) == 1
            assert is_true(found, "Ready")
            (told,) = found["status"]["pods"]
            assert told["stage"] == "Loading"
        with report.step(scenario, "resumed to ready"):
            serving.wait_until_ready(NAME, replicas=2)
    load.assert_nothing_lost(at_least=AT_LEAST)


def _change(serving: ModelDeployments, spec: Object) -> None:
    """Changes the spec and waits until the operator has seen it, which takes seconds at most."""
    serving.kube.patch(MODEL_DEPLOYMENT, NAME, NAMESPACE, {"spec": spec})
    serving.wait(NAME, "new spec seen", is_seen, seconds=90)
