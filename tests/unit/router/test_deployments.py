"""Which deployment a model's name means, as the registry and the replicas come and go."""

import logging

import msgspec
import pytest
from tests.fakes.fake_presence import new_record

from octavo_protocol.errors import NotFoundError, UnavailableError, ValidationError
from octavo_protocol.keys import RECORD_TTL_S, Keys
from octavo_protocol.records import AdapterSource, DeploymentRecord, encode
from octavo_router.deployment import Deployment
from octavo_router.deployments import Deployments
from octavo_router.prefix_index import IndexBudget


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def registered(
    name: str, *served: str, at: float = 1.0, policy: str = "least-load"
) -> DeploymentRecord:
    namespace, _, deployment = name.partition("/")
    return DeploymentRecord(namespace, deployment, list(served), policy, at)


def registry(*records: DeploymentRecord, clock: Clock | None = None) -> Deployments:
    deployments = Deployments(budget=IndexBudget(), clock=clock or Clock())
    deployments.take_registry(records)
    return deployments


def set_replicas(deployments: Deployments, name: str, *replica_ids: str, **fields: object) -> None:
    deployment = deployments.get(name)
    assert deployment is not None
    raw = {each: encode(new_record(each, **fields)) for each in replica_ids}
    deployments.take_replicas(deployment, raw)


def found(deployments: Deployments, model: str | None) -> str:
    return deployments.find(model).name


def test_each_name_means_its_deployment_with_its_own_policy() -> None:
    deployments = registry(
        registered("n/a", "small", "tiny"), registered("n/b", "large", policy="round-robin")
    )
    assert [found(deployments, name) for name in ("small", "tiny", "large")] == [
        "n/a",
        "n/a",
        "n/b",
    ]
    assert deployments.find("tiny").policy.name == "least-load"
    assert deployments.find("large").policy.name == "round-robin"


def test_an_unknown_name_is_not_found_and_the_message_lists_what_there_is() -> None:
    deployments = registry(*(registered(f"n/d{i}", f"m{i:02}") for i in range(22)))
    with pytest.raises(
        NotFoundError, match=r"'other' does not exist; there are 'm00', .* and 2 more"
    ):
        deployments.find("other")
    with pytest.raises(NotFoundError, match="there are none"):
        registry().find("other")


def test_no_name_means_the_only_deployment_and_is_refused_where_there_are_several() -> None:
    assert found(registry(registered("n/a", "m")), None) == "n/a"
    with pytest.raises(ValidationError, match="model must name one of 'l', 'm'"):
        registry(registered("n/a", "m"), registered("n/b", "l")).find("")


def test_before_the_registry_was_read_nothing_is_said_not_to_exist() -> None:
    with pytest.raises(UnavailableError):
        Deployments(budget=IndexBudget()).find("m")


def test_a_registered_model_without_a_ready_replica_is_unavailable_by_name() -> None:
    deployments = registry(registered("n/a", "m"))
    with pytest.raises(UnavailableError, match="no replica of the model 'm' is ready"):
        deployments.find("m").check("m")
    set_replicas(deployments, "n/a", "r", served_names=["m"])
    deployments.find("m").check("m")


@pytest.mark.parametrize("ages", [(2.0, 1.0), (1.0, 1.0)])
def test_a_name_of_two_deployments_belongs_to_the_older_and_is_warned_of_once(
    ages: tuple[float, float], caplog: pytest.LogCaptureFixture
) -> None:
    records = [registered("n/b", "m", "b", at=ages[0]), registered("n/a", "m", at=ages[1])]
    with caplog.at_level(logging.WARNING):
        deployments = registry(*records)
        assert found(deployments, "m") == "n/a"
        assert found(deployments, "b") == "n/b"
        deployments.take_registry([*records, registered("n/c", "c")])
        assert found(deployments, "c") == "n/c"
    warnings = [record.message for record in caplog.records if "'m'" in record.message]
    assert len(warnings) == 1
    assert "n/b belongs to n/a" in warnings[0]


def test_a_name_goes_to_the_younger_when_the_older_leaves() -> None:
    older, younger = registered("n/a", "m", at=1.0), registered("n/b", "m", at=2.0)
    deployments = registry(older, younger)
    assert found(deployments, "m") == "n/a"
    deployments.take_registry([younger])
    assert found(deployments, "m") == "n/b"


def test_names_that_only_replicas_tell_of_come_after_registered_ones() -> None:
    deployments = registry(registered("n/a", "m", at=1.0), registered("n/b", "adapter", at=2.0))
    set_replicas(deployments, "n/a", "r", served_names=["m", "adapter", "mine"])
    assert [found(deployments, name) for name in ("adapter", "mine")] == ["n/b", "n/a"]


def test_an_adapter_s_name_comes_after_every_model_s_and_leaves_with_its_registration() -> None:
    younger = registered("n/b", "l", at=2.0)
    with_adapters = msgspec.structs.replace(
        registered("n/a", "m", at=1.0),
        adapters=[AdapterSource("l", "hf://org/l"), AdapterSource("sql", "hf://org/sql")],
    )
    deployments = registry(with_adapters, younger)
    set_replicas(deployments, "n/a", "r", served_names=["m"], max_adapters=2)
    assert {name: found(deployments, name) for name in ("m", "l", "sql")} == {
        "m": "n/a",
        "l": "n/b",
        "sql": "n/a",
    }
    assert deployments.is_ready("sql")
    deployments.take_registry([registered("n/a", "m", at=1.0), younger])
    with pytest.raises(NotFoundError):
        deployments.find("sql")


def test_an_adapter_that_no_replica_has_room_for_is_not_ready() -> None:
    record = msgspec.structs.replace(
        registered("n/a", "m"), adapters=[AdapterSource("sql", "hf://org/sql")]
    )
    deployments = registry(record)
    set_replicas(deployments, "n/a", "r", served_names=["m"])
    assert (deployments.is_ready("m"), deployments.is_ready("sql")) == (True, False)


def test_only_the_namespaces_asked_for_are_served() -> None:
    deployments = Deployments(budget=IndexBudget(), namespaces=("x",), clock=Clock())
    deployments.take_registry([registered("x/a", "m"), registered("y/b", "l")])
    assert list(deployments.names()) == ["m"]


def test_a_deployment_that_leaves_gives_its_room_in_the_index_back() -> None:
    budget = IndexBudget()
    deployments = Deployments(budget=budget, clock=Clock())
    staying = registered("n/b", "l")
    deployments.take_registry([registered("n/a", "m"), staying])
    set_replicas(deployments, "n/a", "r")
    leaving = deployments.find("m")
    store(leaving)
    assert budget.num_entries == 1

    deployments.take_registry([staying])

    assert budget.num_entries == 0
    assert deployments.get("n/a") is None
    leaving.blocks.take_batch(leaving.replicas.records[0].incarnation, {})  # a round under way
    assert budget.num_entries == 0


def store(deployment: Deployment) -> None:
    """Its only replica holds a block."""
    deployment.follow_caches()
    deployment.index.add(deployment.replicas.records[0].incarnation, [b"x" * 16])


def test_a_changed_record_changes_the_deployment_and_keeps_its_replicas() -> None:
    deployments = registry(registered("n/a", "m"))
    set_replicas(deployments, "n/a", "r", served_names=["m"])
    deployments.take_registry([registered("n/a", "new", policy="round-robin")])
    deployment = deployments.find("new")
    assert (deployment.policy.name, len(deployment.replicas)) == ("round-robin", 1)


def test_a_policy_of_a_newer_release_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    deployments = registry(registered("n/a", "m", policy="oracle"))
    assert deployments.find("m").policy.name == "expected-ttft"
    assert "unknown policy 'oracle'" in caplog.text


def test_without_any_registry_deployments_stay_while_their_replicas_live() -> None:
    clock = Clock()
    deployments = registry(registered("n/a", "m"), registered("n/b", "l"), clock=clock)
    set_replicas(deployments, "n/a", "r", served_names=["m"])

    deployments.take_registry([])
    assert {each.name for each in deployments} == {"n/a", "n/b"}
    clock.now += RECORD_TTL_S
    deployments.take_registry([])
    assert {each.name for each in deployments} == {"n/a"}

    set_replicas(deployments, "n/a")  # none: forgotten one time to live later
    clock.now += RECORD_TTL_S
    set_replicas(deployments, "n/a")
    deployments.take_registry([])
    assert len(deployments) == 0


def test_a_fixed_deployment_serves_the_names_that_its_replicas_tell() -> None:
    deployments = Deployments(budget=IndexBudget(), clock=Clock())
    deployments.add(Keys("n", "a"))
    with pytest.raises(UnavailableError, match="no replica is ready"):
        deployments.find("m")
    set_replicas(deployments, "n/a", "r", served_names=["m"])
    assert found(deployments, "m") == "n/a"
    with pytest.raises(NotFoundError):
        deployments.find("other")
