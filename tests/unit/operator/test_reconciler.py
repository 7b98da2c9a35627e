"""Turns that succeed, that are refused, and that fail: what happens to the queue and the memory."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pytest

from octavo_operator.act import Actor, Outcome
from octavo_operator.adapters_client import AdaptersClient
from octavo_operator.cluster import ApiUnreachableError
from octavo_operator.desired import Desired
from octavo_operator.fleet import Fleet
from octavo_operator.gather import Memory
from octavo_operator.leader import LeadershipLostError
from octavo_operator.metrics import OperatorMetrics
from octavo_operator.model_config import ModelConfigs
from octavo_operator.observed import KubernetesObject, Observed, Recommendation
from octavo_operator.queue import DEBOUNCE_S, FIRST_BACKOFF_S, Key, ReconcileQueue
from octavo_operator.reconciler import Reconciler
from octavo_operator.settings import OperatorSettings
from octavo_operator.watches import Watches
from octavo_protocol.records import ReplicaRecord

KEY = Key("team", "chat")
SETTINGS = OperatorSettings(runtime_image="octavo:1", redis_url="redis://r")


def model_deployment(uid: str = "u-1") -> dict[str, Any]:
    return {
        "apiVersion": "octavo.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "chat", "namespace": "team", "uid": uid, "resourceVersion": "1"},
        "spec": {"model": {"source": "smollm2"}},
    }


class KnownWorld:
    """What a reconciler reads of the watches, the fleet, adapters and model facts."""

    child_kinds: Sequence[tuple[str, str, str, str]] = ()
    is_known = True

    def __init__(self) -> None:
        self.found: dict[Key, KubernetesObject] = {KEY: model_deployment()}
        self.forgotten: list[str] = []
        self.adapters_of: dict[Key, list[KubernetesObject]] = {}

    def deployment(self, key: Key) -> KubernetesObject | None:
        return self.found.get(key)

    def deployment_keys(self) -> list[Key]:
        return list(self.found)

    def children(self, key: Key) -> list[KubernetesObject]:
        return []

    pods = children

    def adapters(self, key: Key) -> list[KubernetesObject]:
        return self.adapters_of.get(key, [])

    def claims(self, name: str) -> list[tuple[str, str, Key]]:
        return []

    def node_labels(self) -> list[Mapping[str, str]]:
        return []

    def replicas(self, key: Key) -> Sequence[ReplicaRecord]:
        return ()

    def download(self, key: Key) -> None:
        return None

    def facts(self, key: Key, deployment: KubernetesObject) -> None:
        return None

    def errors(self, key: Key) -> Mapping[tuple[str, str], str]:
        return {}

    async def unregister(self, key: Key) -> None:
        self.forgotten.append(f"registration of {key}")

    def forget(self, key: Key) -> None:
        self.forgotten.append(str(key))


class ScriptedActor:
    """Gives one outcome after another, or raises it."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome | Exception] = []
        self.seen: list[Observed] = []
        self.told: list[str] = []

    async def tell(self, adapter: KubernetesObject, status: Mapping[str, Any]) -> None:
        self.told.append(f"{adapter['metadata']['name']}: {status['conditions'][0]['reason']}")

    async def act(self, observed: Observed, desired: Desired, memory: Memory) -> Outcome:
        self.seen.append(observed)
        memory.recommendations = desired.recommendations
        outcome = self.outcomes.pop(0) if self.outcomes else Outcome((), False)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class World:
    """A reconciler on a clock that is turned by hand. decide: what it decides with."""

    def __init__(self) -> None:
        self.now = 0.0
        self.queue = ReconcileQueue(clock=lambda: self.now)
        self.known = KnownWorld()
        self.actor = ScriptedActor()
        self.metrics = OperatorMetrics()
        self.decide: Callable[[Observed], Desired] = lambda observed: Desired(
            children=(), status={}, look_again_s=self.look_again_s
        )
        self.look_again_s: float | None = None
        self.may_act = True
        self.reconciler = Reconciler(
            settings=SETTINGS,
            decide=lambda observed, settings: self.decide(observed),
            queue=self.queue,
            watches=cast(Watches, self.known),
            fleet=cast(Fleet, self.known),
            adapters=cast(AdaptersClient, self.known),
            configs=cast(ModelConfigs, self.known),
            actor=cast(Actor, self.actor),
            served=frozenset(),
            metrics=self.metrics,
            check=self._check,
        )

    def _check(self) -> None:
        if not self.may_act:
            raise LeadershipLostError("lost")

    async def turn(self) -> None:
        """The next turn, after the time that passes until it is due."""
        assert self.next_due is not None
        self.now = max(self.now, self.next_due)
        key = await self.queue.take()
        assert key is not None
        await self.reconciler.turn(key)

    @property
    def next_due(self) -> float | None:
        return self.queue.next_due

    def errors(self, cause: str) -> float:
        [family] = self.metrics.reconcile_errors.collect()
        samples = {
            each.labels["cause"]: each.value
            for each in family.samples
            if each.name.endswith("_total")
        }
        return samples.get(cause, 0)


@pytest.fixture
def world() -> World:
    world = World()
    world.queue.add(KEY)
    return world


async def test_a_turn_that_went_well_leaves_nothing_to_do(world: World) -> None:
    await world.turn()
    assert (world.next_due, world.queue.num_running) == (None, 0)


async def test_a_decision_that_time_may_change_is_made_again(world: World) -> None:
    world.look_again_s = 30.0
    await world.turn()
    assert world.next_due == world.now + 30


async def test_a_child_of_a_former_deployment_is_looked_for_again_soon(world: World) -> None:
    world.look_again_s = 30.0
    world.actor.outcomes = [Outcome((), waits_for_former=True)]
    await world.turn()
    assert world.next_due == world.now + 1


async def test_what_the_server_refused_is_told_at_once_and_tried_again_later(world: World) -> None:
    refused = Outcome(("Service chat: quota",), False)
    world.actor.outcomes = [refused, refused]
    await world.turn()
    assert world.next_due == world.now + DEBOUNCE_S, "the status is to tell"
    await world.turn()
    assert [each.apply_errors for each in world.actor.seen] == [(), refused.refused]
    assert world.next_due == FIRST_BACKOFF_S + DEBOUNCE_S, "from the first refusal on"
    await world.turn()
    assert world.next_due == world.now + DEBOUNCE_S, "the status is to tell that it went well"
    await world.turn()
    assert world.actor.seen[-1].apply_errors == ()
    assert world.next_due is None
    assert world.errors("api") == 2


async def test_a_server_that_is_away_and_a_defect_end_the_turn_and_nothing_else(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.actor.outcomes = [ApiUnreachableError("away"), ValueError("oops")]
    await world.turn()
    assert world.next_due == world.now + FIRST_BACKOFF_S
    with caplog.at_level(logging.ERROR):
        await world.turn()
    assert "oops" in caplog.text
    assert world.next_due == world.now + 2 * FIRST_BACKOFF_S
    await world.turn()
    assert (world.errors("unreachable"), world.errors("defect")) == (1, 1)
    assert world.next_due is None


async def test_the_autoscalers_memory_is_kept_between_turns_but_not_for_another_deployment(
    world: World,
) -> None:
    recommendations = (cast(Recommendation, object()),)
    world.decide = lambda observed: Desired(children=(), status={}, recommendations=recommendations)
    await world.turn()
    world.queue.add(KEY)
    await world.turn()
    world.known.found[KEY] = model_deployment(uid="u-2")
    world.queue.add(KEY)
    await world.turn()
    seen = [each.recommendations for each in world.actor.seen]
    assert seen == [(), recommendations, ()]


async def test_a_deployment_that_is_gone_is_forgotten_everywhere(world: World) -> None:
    world.known.found.clear()
    await world.turn()
    assert world.known.forgotten == [str(KEY), str(KEY), f"registration of {KEY}"]
    assert (world.actor.seen, world.next_due) == ([], None)


async def test_adapters_of_a_deployment_that_does_not_exist_are_told_so(world: World) -> None:
    world.known.found.clear()
    metadata = {"name": "law", "namespace": "team", "generation": 1}
    world.known.adapters_of[KEY] = [{"metadata": metadata, "spec": {"target": {"name": "chat"}}}]
    await world.turn()
    assert world.actor.told == ["law: TargetMissing"]


async def test_a_process_that_lost_the_lease_ends_before_it_acts(world: World) -> None:
    world.may_act = False
    world.now = DEBOUNCE_S
    with pytest.raises(LeadershipLostError):
        await world.reconciler.work()
    assert world.actor.seen == []
