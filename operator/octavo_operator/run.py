"""The operator process from start to stop.

Standing by: nothing is watched, only the lease is read. Leading: kopf's watches fill the indices
and name deployments to the queue, workers take turns, Redis is polled. When any of these ends, the
process ends, and is started again by its own Deployment: it has nothing to lose.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import kopf

from octavo_operator.batch_jobs.parts import KIND as BATCH_JOBS
from octavo_operator.cluster import Cluster
from octavo_operator.health import Health
from octavo_operator.leader import Leader, LeadershipLostError
from octavo_operator.metrics import OperatorMetrics
from octavo_operator.parts import Parts, assemble
from octavo_operator.settings import OperatorSettings
from octavo_operator.watches import CHILD_KINDS
from octavo_protocol.errors import OctavoError
from octavo_protocol.logs import configure_logging
from octavo_protocol.resources.metadata import API_VERSION

logger = logging.getLogger(__name__)

LONGEST_TURN_S = 600.0
STOP_S = 10.0
END_S = 2.0
EXIT_HUNG = 3
_RETRY_S = 5.0
# What is not served is not watched, and `decide` leaves it out.
_GROUP_VERSIONS = (
    "v1",
    "apps/v1",
    "batch/v1",
    "policy/v1",
    "policy/v1beta1",
    "leaderworkerset.x-k8s.io/v1",
    API_VERSION,
)


def run_operator(settings: OperatorSettings) -> None:
    """Runs until SIGTERM or SIGINT. Raises `OctavoError` when it cannot start or go on."""
    configure_logging(settings.log_level)
    if settings.log_level != "debug":
        logging.getLogger("kopf").setLevel(logging.WARNING)  # it tells of every event
    asyncio.run(_run(settings))


async def _run(settings: OperatorSettings) -> None:
    try:
        await Process(settings).run()
    except OctavoError as error:
        logger.error("ending: %s", error.message)
        raise
    finally:
        # asyncio waits without end for tasks that outlive their cancellation, as some of kopf's do.
        last_resort = threading.Timer(END_S, os._exit, (EXIT_HUNG,))
        last_resort.daemon = True
        last_resort.start()


class WatchError(OctavoError):
    """The watches ended; what is known would grow old."""


class Process:
    """One operator process."""

    def __init__(self, settings: OperatorSettings) -> None:
        self._settings = settings
        self._metrics = OperatorMetrics()
        self._health = Health(self._metrics.render)
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Until it is told to stop. Raises `LeadershipLostError` when another one may act."""
        self._take_signals()
        async with (
            self._health.serve(self._settings.health_port) as port,
            Cluster(self._metrics) as cluster,
        ):
            logger.info("health and metrics on port %d", port)
            if not self._settings.leader_election:
                await self._operate(cluster, _always)
                return
            leader = Leader(cluster, self._settings.operator_namespace, self._settings.identity)
            self._health.ready = lambda: ""  # standing by is all that a standby has to do
            logger.info("standing by")
            if await self._acquire(leader):
                try:
                    await self._lead(cluster, leader)
                finally:
                    await leader.release()

    async def _acquire(self, leader: Leader) -> bool:
        """Whether the lease is ours; else the process is to stop."""
        acquiring = asyncio.create_task(leader.acquire())
        stopping = asyncio.create_task(self._stop.wait())
        await _first(acquiring, stopping)
        return not self._stop.is_set()

    async def _lead(self, cluster: Cluster, leader: Leader) -> None:
        def check() -> None:
            if not leader.is_leading:
                raise LeadershipLostError("the lease was not renewed in time")

        self._metrics.is_leader.set(1)
        operating = asyncio.create_task(self._operate(cluster, check))
        await _first(operating, asyncio.create_task(leader.hold()))

    async def _operate(self, cluster: Cluster, check: Callable[[], None]) -> None:
        """Until it is told to stop, or until one of the parts ends."""
        self._health.ready = lambda: "the watches have not started"
        served = await self._served(cluster)
        if not self._stop.is_set():
            async with assemble(self._settings, cluster, self._metrics, served, check) as parts:
                await self._run(parts)

    async def _run(self, parts: Parts) -> None:
        self._health.measure = parts.measure
        self._health.alive = lambda: _stuck(parts)
        workers = [
            asyncio.create_task(parts.reconciler.work(), name=f"worker {number}")
            for number in range(self._settings.max_concurrent)
        ]
        batch_jobs = parts.batch_jobs
        if batch_jobs is not None:
            workers += _tasks("worker for BatchJobs", batch_jobs.workers())
        others = [
            asyncio.create_task(parts.fleet.run(), name="fleet"),
            asyncio.create_task(parts.reconciler.resync(), name="resync"),
            asyncio.create_task(self._watch(parts), name="watches"),
            asyncio.create_task(self._stop.wait(), name="stop"),
        ]
        if batch_jobs is not None:
            others += _tasks("BatchJobs", batch_jobs.others())
        try:
            done, _ = await asyncio.wait([*workers, *others], return_when=asyncio.FIRST_COMPLETED)
            logger.info("stopping, after the end of %s", ", ".join(t.get_name() for t in done))
            self._health.ready = lambda: "stopping"
            for queue in parts.queues:
                queue.close()
            await asyncio.wait(workers, timeout=STOP_S)
        finally:
            await _end(*workers, *others)
        for task in done:
            task.result()

    async def _watch(self, parts: Parts) -> None:
        """kopf, until one of its tasks ends or a watch has lost its place. Raises `WatchError`."""
        tasks = await kopf.spawn_tasks(
            registry=parts.watches.registry,
            settings=parts.watches.settings,
            identity=self._settings.identity,
            clusterwide=not self._settings.namespaces,
            namespaces=self._settings.namespaces,
            standalone=True,
        )
        self._take_signals()  # kopf has taken them
        self._health.ready = lambda: ""
        logger.info("watching %s", ", ".join(self._settings.namespaces) or "all namespaces")
        relisting = asyncio.create_task(parts.watches.relisting.happened.wait())
        try:
            # Not kopf.run_tasks: when a watch fails, it waits without end for the other ones.
            ends = [relisting, *tasks]
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end(relisting, *tasks)
        if relisting in done:
            raise WatchError("a watch lost its place; what was deleted meanwhile is not known")
        errors = [each.exception() for each in done if not each.cancelled()]
        raise WatchError(f"the watches ended: {next(filter(None, errors), 'for no reason')}")

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, self._stop.set)

    async def _served(self, cluster: Cluster) -> frozenset[str]:
        """`group/version/Kind` of what matters; waits for our own definitions."""
        while not self._stop.is_set():
            served = await _served_kinds(cluster)
            if f"{API_VERSION}/ModelDeployment" in served:
                _log_missing(served)
                return served
            self._health.ready = lambda: "the CustomResourceDefinitions are not installed"
            logger.warning("%s is not served: install crds/; looked for again", API_VERSION)
            await asyncio.sleep(_RETRY_S)
        return frozenset()


async def _served_kinds(cluster: Cluster) -> frozenset[str]:
    found = await asyncio.gather(*(cluster.served_kinds(each) for each in _GROUP_VERSIONS))
    return frozenset(
        f"{version}/{kind}"
        for version, kinds in zip(_GROUP_VERSIONS, found, strict=True)
        for kind in kinds
    )


def _log_missing(served: frozenset[str]) -> None:
    kinds = {each.rpartition("/")[2] for each in served}
    wanted = {each[3] for each in CHILD_KINDS} | {BATCH_JOBS.rpartition("/")[2]}
    for kind in sorted(wanted - kinds):
        logger.warning("the API server does not serve %s: left out", kind)


def _tasks(name: str, work: Iterable[Coroutine[Any, Any, None]]) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(each, name=name) for each in work]


def _stuck(parts: Parts) -> str:
    longest = max(queue.longest_turn_s for queue in parts.queues)
    return f"a turn goes on for {longest:.0f} s" if longest > LONGEST_TURN_S else ""


def _always() -> None:
    """Nobody else acts: there is no election."""


async def _first(*tasks: asyncio.Task[Any]) -> None:
    """Returns when the first of them has ended, and has ended the others. Raises what it raised."""
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _end(*tasks)
    for task in done:
        task.result()


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancels them and waits for them, but not for ever."""
    for task in tasks:
        task.cancel()
    _, left = await asyncio.wait(tasks, timeout=END_S)
    for task in left:
        logger.warning("%s does not end", task.get_name())
