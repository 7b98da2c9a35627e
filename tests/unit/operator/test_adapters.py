"""Adapters: where they belong, what replicas are asked, what their status says."""

from dataclasses import replace
from typing import Any

from tests.fakes.observations import NAME, NOW, SETTINGS, condition, deployment, record, settled

from octavo_operator.adapter_status import status_without_target
from octavo_operator.decide import decide
from octavo_operator.desired import AdapterAction, Desired, Manifest
from octavo_operator.observed import Observed
from octavo_protocol.records import AdapterError, AdapterSource
from octavo_protocol.resources.model_source import ModelSource

SQL = {"name": "sql", "model": {"source": "hf://org/sql"}}
SOURCE = ModelSource(source="hf://org/sql")
LORA: dict[str, Any] = {"lora": {}}


def lora_adapter(name: str, created: str = "2026-03-01T11:00:00Z", **spec: Any) -> Manifest:
    return {
        "apiVersion": "octavo.dev/v1alpha1",
        "kind": "LoraAdapter",
        "metadata": {
            "name": name,
            "namespace": "team",
            "generation": 3,
            "creationTimestamp": created,
        },
        "spec": {"target": {"name": NAME}, "model": {"source": f"hf://org/{name}"}, **spec},
    }


def fleet(observed: Observed, *adapters: list[str]) -> Observed:
    """Ready replicas that hold these adapters."""
    return replace(
        observed,
        replicas=[record(f"{NAME}-{i}", adapters=each) for i, each in enumerate(adapters)],
    )


def asked(desired: Desired) -> list[tuple[str, str, bool]]:
    """(replica, adapter, is it to be loaded)."""
    return [(a.replica_id, a.adapter, a.source is not None) for a in desired.adapter_actions]


def test_replicas_that_lack_an_adapter_are_asked_to_load_it() -> None:
    observed = settled(deployment(adapters=[SQL], replicas=2), 2)
    desired = decide(fleet(observed, ["sql"], []), SETTINGS)

    assert desired.adapter_actions == (
        AdapterAction("chat-1", "http://chat-1:8000", "sql", SOURCE),
    )
    assert condition(desired, "AdaptersLoaded") == (
        "False",
        "Loading",
        "sql on chat-1: not loaded yet",
    )
    assert desired.events == ()


def test_loaded_everywhere_asks_nothing_and_says_so() -> None:
    observed = settled(deployment(adapters=[SQL], replicas=2), 2)
    desired = decide(fleet(observed, ["sql"], ["sql"]), SETTINGS)

    assert desired.adapter_actions == ()
    assert condition(desired, "AdaptersLoaded") == (
        "True",
        "Loaded",
        "1 adapters are where they belong, on 2 ready replicas",
    )


def test_adapters_that_nobody_wants_any_more_are_unloaded() -> None:
    observed = settled(deployment(**LORA), 1)

    assert asked(decide(fleet(observed, ["old"]), SETTINGS)) == [("chat-0", "old", False)]


def test_a_paused_deployment_is_asked_nothing() -> None:
    observed = settled(deployment(adapters=[SQL]), 1)
    paused = {**observed.deployment, "spec": {**observed.deployment["spec"], "paused": True}}

    assert decide(replace(observed, deployment=paused), SETTINGS).adapter_actions == ()


def test_an_adapter_resource_tells_where_it_is_and_why_it_is_not() -> None:
    observed = settled(deployment(**LORA, replicas=2), 2, adapters=[lora_adapter("sql")])
    error = "rank 64 is more than maxLoraRank 16"
    failing = replace(fleet(observed, ["sql"], []), adapter_errors={("chat-1", "sql"): error})
    desired = decide(failing, SETTINGS)
    status = desired.adapter_statuses["sql"]

    assert status["loadedReplicas"] == 1
    assert status["observedGeneration"] == 3
    assert status["replicas"] == [
        {"name": "chat-0", "loaded": True},
        {"name": "chat-1", "loaded": False, "message": error},
    ]
    assert [(c["type"], c["status"], c["reason"], c["message"]) for c in status["conditions"]] == [
        ("Ready", "False", "LoadFailed", f"loaded on 1 of 2 ready replicas; chat-1: {error}")
    ]
    assert condition(desired, "AdaptersLoaded") == (
        "False",
        "LoadFailed",
        f"sql on chat-1: {error}",
    )
    assert [each.reason for each in desired.events] == ["LoadFailed"]


def test_an_adapter_for_a_deployment_without_room_changes_no_pod_and_says_what_to_write() -> None:
    observed = settled(deployment(), 1)
    with_adapter = replace(observed, adapters=[lora_adapter("sql")])
    desired = decide(with_adapter, SETTINGS)

    assert desired.children == decide(observed, SETTINGS).children
    assert desired.adapter_actions == ()
    assert desired.adapter_statuses["sql"]["conditions"][0]["reason"] == "NoRoom"
    assert desired.adapter_statuses["sql"]["conditions"][0]["message"] == (
        "ModelDeployment chat has no room for adapters; give it spec.lora"
    )


def test_an_on_demand_adapter_is_loaded_nowhere_and_unloaded_nowhere() -> None:
    adapter = lora_adapter("sql", loadPolicy="OnDemand")
    observed = settled(deployment(**LORA, replicas=2), 2, adapters=[adapter])
    desired = decide(fleet(observed, ["sql"], []), SETTINGS)

    assert desired.adapter_actions == ()
    assert desired.adapter_statuses["sql"]["loadedReplicas"] == 1
    assert desired.adapter_statuses["sql"]["conditions"][0]["status"] == "True"


def test_the_older_of_two_adapters_keeps_a_name_and_none_gets_the_models() -> None:
    adapters = [
        lora_adapter("b", "2026-03-01T10:00:00Z", servedName="sql"),
        lora_adapter("a", "2026-03-01T11:00:00Z", servedName="sql"),
        lora_adapter("c", servedName=NAME),
    ]
    observed = settled(deployment(**LORA), 1, adapters=adapters)
    desired = decide(fleet(observed, []), SETTINGS)
    told = {name: s["conditions"][0] for name, s in desired.adapter_statuses.items()}

    assert desired.adapter_actions == (
        AdapterAction("chat-0", "http://chat-0:8000", "sql", ModelSource(source="hf://org/b")),
    )
    assert (told["a"]["reason"], told["a"]["message"]) == (
        "NameTaken",
        "the name sql belongs to b; give another servedName",
    )
    assert (
        told["c"]["message"] == "the name chat belongs to the model itself; give another servedName"
    )


def test_an_invalid_adapter_names_its_field_and_is_unloaded_nowhere() -> None:
    broken = lora_adapter("sql", loadPolicy="Sometimes")
    observed = settled(deployment(**LORA), 1, adapters=[broken])
    desired = decide(fleet(observed, ["sql"]), SETTINGS)
    told = desired.adapter_statuses["sql"]["conditions"][0]

    assert told["reason"] == "Invalid"
    assert told["message"].startswith("spec.loadPolicy: ")
    assert desired.adapter_actions == ()  # what replicas have of it serves on


def test_redis_away_leaves_what_adapters_say() -> None:
    observed = settled(deployment(adapters=[SQL]), 1, adapters=[lora_adapter("other")])
    desired = decide(replace(observed, replicas=(), is_fleet_known=False), SETTINGS)

    assert desired.adapter_statuses == {}
    assert condition(desired, "AdaptersLoaded")[:2] == ("Unknown", "RedisUnavailable")


def test_without_a_ready_replica_nobody_tells() -> None:
    observed = settled(deployment(adapters=[SQL]), 0, adapters=[lora_adapter("other")])
    desired = decide(observed, SETTINGS)

    assert condition(desired, "AdaptersLoaded")[:2] == ("Unknown", "NoReplicaReady")
    assert desired.adapter_statuses["other"]["conditions"][0]["reason"] == "NoReplicaReady"


def test_a_secret_that_the_replicas_do_not_have_is_named_and_nothing_is_tried() -> None:
    private = {"source": "hf://org/law", "secretRef": {"name": "law-token"}}
    observed = fleet(
        settled(deployment(**LORA), 1, adapters=[lora_adapter("law", model=private)]), []
    )
    desired = decide(observed, SETTINGS)
    [ready] = desired.adapter_statuses["law"]["conditions"]

    assert desired.adapter_actions == ()
    assert (ready["status"], ready["reason"]) == ("False", "SecretMissing")
    assert "do not have the Secret law-token; name it there too" in ready["message"]


def test_a_secret_that_the_deployment_names_too_is_enough() -> None:
    private = {"source": "hf://org/law", "secretRef": {"name": "token"}}
    model = {"source": "hf://org/base", "secretRef": {"name": "token"}}
    resource = deployment(model=model, **LORA)
    observed = fleet(settled(resource, 1, adapters=[lora_adapter("law", model=private)]), [])

    assert asked(decide(observed, SETTINGS)) == [("chat-0", "law", True)]


def test_an_adapter_without_its_deployment_says_so_and_is_loaded_nowhere() -> None:
    orphan = lora_adapter("law") | {"status": {"loadedReplicas": 2}}
    status = status_without_target(orphan, NOW)
    [ready] = status["conditions"]

    assert (ready["status"], ready["reason"]) == ("False", "TargetMissing")
    assert ready["message"] == "there is no ModelDeployment chat in namespace team"
    assert status["loadedReplicas"] == 0


def test_an_adapter_cannot_have_the_name_of_another_deployment_s_model() -> None:
    """Routers would take requests for it to that model."""
    observed = settled(deployment(**LORA), 1, adapters=[lora_adapter("law"), lora_adapter("code")])
    taken = replace(fleet(observed, ["law"]), owners_of_adapter_names={"law": "other/law"})
    desired = decide(taken, SETTINGS)
    [ready] = desired.adapter_statuses["law"]["conditions"]

    assert asked(desired) == [("chat-0", "code", True), ("chat-0", "law", False)]
    assert (ready["status"], ready["reason"]) == ("False", "NameTaken")
    assert "the name law belongs to ModelDeployment other/law" in ready["message"]
    assert condition(desired, "Ready")[0] == "True"


def serving(name: str, origin: str, version: str = "v1", **fields: Any) -> dict[str, Any]:
    """Fields of the record of a replica that has this adapter."""
    return {
        "adapters": [name],
        "adapter_sources": {name: origin},
        "adapter_versions": {name: version},
        **fields,
    }


def test_another_source_is_loaded_in_place_and_the_status_says_which_version_is_where() -> None:
    adapter = lora_adapter("sql", model={"source": "hf://org/sql", "revision": "new"})
    observed = settled(deployment(**LORA, replicas=3), 3, adapters=[adapter])
    error = "adapter_model.safetensors is cut off"
    observed = replace(
        observed,
        replicas=[
            record(f"{NAME}-0", **serving("sql", "hf://org/sql@new", "v2")),
            record(f"{NAME}-1", **serving("sql", "hf://org/sql@old")),
            record(f"{NAME}-2", **serving("sql", "hf://org/sql@old")),
        ],
        adapter_errors={("chat-2", "sql"): error},
    )
    desired = decide(observed, SETTINGS)
    status = desired.adapter_statuses["sql"]
    source = ModelSource(source="hf://org/sql", revision="new")

    assert desired.adapter_actions == tuple(
        AdapterAction(f"chat-{i}", f"http://chat-{i}:8000", "sql", source, in_place=True)
        for i in (1, 2)
    )
    assert (status["loadedReplicas"], status["updatedReplicas"]) == (3, 1)
    assert status["replicas"] == [
        {"name": "chat-0", "loaded": True, "version": "v2"},
        {
            "name": "chat-1",
            "loaded": True,
            "version": "v1",
            "message": "serves the former source: not replaced yet",
        },
        {
            "name": "chat-2",
            "loaded": True,
            "version": "v1",
            "message": f"serves the former source: {error}",
        },
    ]
    [ready] = status["conditions"]
    assert (ready["status"], ready["reason"], ready["message"]) == (
        "False",
        "LoadFailed",
        f"loaded on 3 of 3 ready replicas, on 2 of them from the former source; chat-2: {error}",
    )


def test_an_on_demand_adapter_is_replaced_where_it_is_and_loaded_nowhere_else() -> None:
    adapter = lora_adapter("sql", loadPolicy="OnDemand")
    observed = settled(deployment(**LORA, replicas=2), 2, adapters=[adapter])
    replicas = [record(f"{NAME}-0", **serving("sql", "hf://org/former")), record(f"{NAME}-1")]
    desired = decide(replace(observed, replicas=replicas), SETTINGS)

    assert [(a.replica_id, a.in_place) for a in desired.adapter_actions] == [("chat-0", True)]
    assert desired.adapter_statuses["sql"]["conditions"][0]["reason"] == "Loading"
    assert condition(desired, "AdaptersLoaded")[2] == (
        "sql on chat-0: serves the former source: not replaced yet"
    )


def test_an_on_demand_adapter_that_failed_wherever_it_was_tried_is_not_ready() -> None:
    """Routers ask for it; what the replica answered them it tells us in its record."""
    adapter = lora_adapter("sql", loadPolicy="OnDemand")
    observed = settled(deployment(**LORA, replicas=2), 2, adapters=[adapter])
    failed = {"sql": AdapterError("hf://org/sql", "rank 64 is too much")}
    replicas = [record(f"{NAME}-0", adapter_errors=failed), record(f"{NAME}-1")]
    desired = decide(replace(observed, replicas=replicas), SETTINGS)
    [ready] = desired.adapter_statuses["sql"]["conditions"]
    assert desired.adapter_actions == ()
    assert (ready["reason"], ready["message"]) == (
        "LoadFailed",
        "loaded on 0 of 2 ready replicas; chat-0: rank 64 is too much",
    )

    elsewhere = [replicas[0], record(f"{NAME}-1", **serving("sql", "hf://org/sql"))]
    desired = decide(replace(observed, replicas=elsewhere), SETTINGS)
    assert desired.adapter_statuses["sql"]["conditions"][0]["status"] == "True"

    former = {"sql": AdapterError("hf://org/former", "rank 64 is too much")}
    repaired = [record(f"{NAME}-0", adapter_errors=former), record(f"{NAME}-1")]
    desired = decide(replace(observed, replicas=repaired), SETTINGS)
    assert desired.adapter_statuses["sql"]["conditions"][0]["status"] == "True"


def test_routers_are_told_of_every_adapter_that_can_be_loaded() -> None:
    revised = {"source": "hf://org/b", "revision": "abc"}
    adapters = [
        lora_adapter("b", loadPolicy="OnDemand", servedName="other", model=revised),
        lora_adapter("c", servedName=NAME),
    ]
    observed = settled(deployment(adapters=[SQL], replicas=1), 1, adapters=adapters)
    registration = decide(fleet(observed, []), SETTINGS).registration
    assert registration is not None
    assert registration.adapters == [
        AdapterSource("other", "hf://org/b", "abc", on_demand=True),
        AdapterSource("sql", "hf://org/sql"),
    ]


def test_only_pods_with_room_for_adapters_let_them_be_loaded_at_run_time() -> None:
    def names(**spec: Any) -> set[str]:
        desired = decide(settled(deployment(**spec), 1), SETTINGS)
        [workload] = [each for each in desired.children or () if each["kind"] == "Deployment"]
        [container] = workload["spec"]["template"]["spec"]["containers"]
        return {each["name"] for each in container["env"]}

    assert names(**LORA) - names() == {"VLLM_ALLOW_RUNTIME_LORA_UPDATING"}
