"""Keeps the platform's processes alive, and stops them in order.

    start:  Redis, then replicas and router together; ready when each answers /ready
    run:    a process that ends is started again, later each time it fails soon
    stop:   router (lets its requests finish), replicas, Redis; then whatever is left is killed

One thread does all of it: children die with the thread that started them (process.py).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx

from octavo.local.backoff import Backoff
from octavo.local.plan import LocalPlan
from octavo.local.process import Child
from octavo.local.redis_server import EmbeddedRedis
from octavo_protocol.errors import ConfigError

_POLL_S = 0.1
_PROBE_TIMEOUT_S = 1.0
_MAX_STARTS_UNTIL_READY = 3
# Exit code of a process that refuses its configuration: starting it again cannot help.
_REFUSED = 2


class Reporter(Protocol):
    """Told what happens to the processes, for a person to read."""

    def stage(self, name: str, stage: str) -> None:
        """`name` is in `stage` of its start; "ready" is the last one."""

    def note(self, text: str) -> None:
        """Something happened that a person wants to know."""


@dataclass(slots=True)
class _Watched:
    child: Child
    backoff: Backoff = field(default_factory=Backoff)
    started_at: float = 0.0
    restart_at: float | None = None
    is_ready: bool = False
    num_starts: int = 0

    @property
    def name(self) -> str:
        return self.child.spec.name


class Supervisor:
    """Runs the processes of one plan.

    redis: the embedded server, not started yet; None where an outer one is used. stop_requested:
    asked all the time; True ends whatever is being waited for.
    """

    def __init__(
        self,
        plan: LocalPlan,
        *,
        redis: EmbeddedRedis | None,
        log_folder: Path,
        reporter: Reporter,
        stop_requested: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        def watched(specs: Sequence[Child]) -> list[_Watched]:
            return [_Watched(child) for child in specs]

        self._redis = redis
        self._reporter = reporter
        self._stop_requested = stop_requested
        self._clock = clock
        self._replicas = watched([Child(s, log_folder / f"{s.name}.log") for s in plan.replicas])
        self._router = watched([Child(plan.router, log_folder / "router.log")])
        self._store = watched([redis.child] if redis else [])
        self._http = httpx.Client(timeout=_PROBE_TIMEOUT_S, trust_env=False)

    def start(self) -> bool:
        """Starts everything; True once all is ready, False when a stop was requested first.

        Raises `ConfigError` with the end of its log when a process cannot start.
        """
        if self._redis is not None:
            self._redis.start()
            self._store[0].started_at = self._clock()
            self._store[0].is_ready = True
            self._reporter.stage("redis", "ready")
        waited_for = [*self._replicas, *self._router]
        for watched in waited_for:
            self._launch(watched)
        while not all(watched.is_ready for watched in waited_for):
            if self._stop_requested():
                return False
            self._tick(is_starting=True)
            time.sleep(_POLL_S)
        return True

    def run(self) -> None:
        """Keeps everything alive until a stop is requested."""
        while not self._stop_requested():
            self._tick(is_starting=False)
            time.sleep(_POLL_S)

    def stop(self, *, hurry: Callable[[], bool]) -> None:
        """Stops everything in order. hurry: True kills what is left at once. Safe to repeat."""
        for group in (self._router, self._replicas):
            running = [watched.child for watched in group if watched.child.is_running()]
            for child in running:
                child.terminate()
            self._await_end(running, hurry)
            for watched in group:
                watched.child.kill()
        if self._redis is not None:
            self._redis.stop()
        self._http.close()

    def _await_end(self, children: Sequence[Child], hurry: Callable[[], bool]) -> None:
        deadline = self._clock() + max((c.spec.stop_timeout_s for c in children), default=0.0)
        while any(child.is_running() for child in children):
            if hurry() or self._clock() > deadline:
                names = ", ".join(child.spec.name for child in children if child.is_running())
                self._reporter.note(f"killing {names}")
                return
            time.sleep(_POLL_S)

    def _tick(self, *, is_starting: bool) -> None:
        for watched in (*self._store, *self._replicas, *self._router):
            if watched.child.is_running():
                if not watched.is_ready:
                    self._probe(watched)
            elif watched.restart_at is None:
                self._plan_restart(watched, is_starting=is_starting)
            elif self._clock() >= watched.restart_at:
                self._launch(watched)

    def _launch(self, watched: _Watched) -> None:
        watched.restart_at = None
        watched.started_at = self._clock()
        watched.num_starts += 1
        watched.child.start()
        watched.is_ready = watched.child.spec.ready_url is None
        self._reporter.stage(watched.name, "ready" if watched.is_ready else "starting")

    def _plan_restart(self, watched: _Watched, *, is_starting: bool) -> None:
        code = watched.child.exit_code
        watched.is_ready = False
        watched.child.kill()  # what it may have left behind, such as its engine process
        is_hopeless = code == _REFUSED or watched.num_starts >= _MAX_STARTS_UNTIL_READY
        if is_starting and is_hopeless:
            raise ConfigError(
                f"{watched.name} ended with code {code} before it was ready. Its log "
                f"({watched.child.log_path}) ends with:\n{watched.child.log_tail()}"
            )
        delay = watched.backoff.next_delay_s(self._clock() - watched.started_at)
        watched.restart_at = self._clock() + delay
        self._reporter.note(
            f"{watched.name} {_ending(code)}; starting it again in {delay:g} s "
            f"(log: {watched.child.log_path})"
        )

    def _probe(self, watched: _Watched) -> None:
        assert watched.child.spec.ready_url is not None
        try:
            response = self._http.get(watched.child.spec.ready_url)
        except httpx.HTTPError:
            return  # not listening yet
        if response.status_code == httpx.codes.OK:
            watched.is_ready = True
            self._reporter.stage(watched.name, "ready")
        else:
            self._reporter.stage(watched.name, _stage(response))


def _stage(response: httpx.Response) -> str:
    """What a process that is not ready says it is doing."""
    try:
        body = response.json()
    except ValueError:
        return "starting"
    stage = body.get("stage") or body.get("status") if isinstance(body, dict) else None
    return stage if isinstance(stage, str) else "starting"


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by signal {-code}"
    return f"ended with code {code}"
