"""One run of `octavo up`, from the manifest to the last process gone."""

import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from octavo.cli.console import ByteProgress
from octavo.local.greet import (
    ask_first_question,
    pooling_lines,
    pooling_route,
    ready_lines,
)
from octavo.local.machine import usable_cores
from octavo.local.plan import LocalPlan, MachineFacts, plan
from octavo.local.ports import free_ports, require_free
from octavo.local.redis_server import EmbeddedRedis
from octavo.local.status import StatusReporter, write
from octavo.local.supervisor import Supervisor
from octavo_protocol.errors import ConfigError
from octavo_protocol.resources.model_deployment import ModelDeployment, load_manifest
from octavo_runtime.models.adapter_source import resolve_adapter
from octavo_runtime.models.cache import cache_root
from octavo_runtime.models.source import resolve_model


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """What the user asked for; the flags of `octavo up`."""

    manifest: Path
    host: str
    port: int
    redis_url: str | None
    greet: bool
    log_level: str


def run_platform(options: UpOptions) -> int:
    """Runs the manifest's deployment until a signal; returns the exit code.

    Raises `ConfigError` for what a person can mend, after everything started is stopped again.
    """
    deployment = load_manifest(options.manifest)
    require_free(options.host, options.port)
    if options.redis_url is not None:
        _require_redis(options.redis_url)
    source = deployment.spec.model
    with ByteProgress() as progress:
        model = resolve_model(source.source, revision=source.revision, progress=progress)
        adapters = {
            each.name: resolve_adapter(
                each.model.source, revision=each.model.revision, progress=progress
            )
            for each in deployment.spec.adapters
        }
    log_folder = _fresh_log_folder(deployment, options.port)
    signals = _Signals()
    redis = None
    if options.redis_url is None:
        redis = EmbeddedRedis(log_path=log_folder / "redis.log")
    facts = MachineFacts(
        model=model,
        adapters=adapters,
        num_cores=usable_cores(),
        redis_url=options.redis_url or (redis.url if redis else ""),
        replica_ports=free_ports(deployment.spec.replicas),
        environment=os.environ,
        files=_files_folder(log_folder, is_new=redis is not None),
    )
    local = plan(
        deployment, facts, host=options.host, port=options.port, log_level=options.log_level
    )
    reporter = StatusReporter()
    supervisor = Supervisor(
        local,
        redis=redis,
        log_folder=log_folder,
        reporter=reporter,
        stop_requested=signals.requested,
    )
    try:
        with reporter:
            is_up = supervisor.start()
        if is_up:
            _welcome(options, local, source.source, log_folder)
            supervisor.run()
    finally:
        reporter.note("stopping; Ctrl-C again does not wait")
        supervisor.stop(hurry=signals.requested_twice)
    return 0


def _welcome(options: UpOptions, local: LocalPlan, source: str, log_folder: Path) -> None:
    url, model = local.router_url, local.model_name
    if route := pooling_route(url, model):
        write(pooling_lines(url, model, source, route))
    else:
        if options.greet:
            ask_first_question(url, model, write)
        write(ready_lines(url, model, source))
    write(f"  Logs: {log_folder}\n\n")


def _require_redis(url: str) -> None:
    import redis

    try:
        with redis.Redis.from_url(url, socket_connect_timeout=3) as client:
            client.ping()
    except (redis.RedisError, ValueError) as error:
        raise ConfigError(
            f"cannot use the Redis of --redis-url: {error}. Leave the flag out to have one started."
        ) from error


def _fresh_log_folder(deployment: ModelDeployment, port: int) -> Path:
    """The run's folder for logs, without those of the run before."""
    folder = cache_root() / "run" / f"{deployment.metadata.name}-{port}"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.log"):
        old.unlink()
    return folder


def _files_folder(run_folder: Path, *, is_new: bool) -> Path:
    """Where files and batches of this run lie. is_new: so is Redis, which knows of none before."""
    folder = run_folder / "files"
    if is_new:
        shutil.rmtree(folder, ignore_errors=True)
    return folder


class _Signals:
    """Counts the requests to stop: Ctrl-C, SIGTERM, a closed terminal."""

    def __init__(self) -> None:
        self._count = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def requested(self) -> bool:
        return self._count >= 1

    def requested_twice(self) -> bool:
        return self._count >= 2

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
