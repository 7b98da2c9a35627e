"""The supervisor with real processes: small HTTP servers in place of replicas and router."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from octavo.local.plan import LocalPlan
from octavo.local.ports import free_ports
from octavo.local.process import Child, ProcessSpec
from octavo.local.redis_server import EmbeddedRedis
from octavo.local.supervisor import Supervisor
from octavo_protocol.errors import ConfigError

pytestmark = pytest.mark.integration

# Answers /ready with 503 and a stage twice, then with 200; on SIGTERM says so and ends.
SERVER = """
import http.server, signal, sys, time
name, port = sys.argv[1], int(sys.argv[2])
asked = []
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append(self.path)
        self.send_response(200 if len(asked) > 2 else 503)
        self.end_headers()
        self.wfile.write(b'{"stage": "loading"}')
    def log_message(self, *arguments): pass
def stop(number, frame):
    print(name, "stops", time.monotonic(), flush=True)
    time.sleep(0.2)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print(name, "starts", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
DEADLINE_S = 120.0


class Recorder:
    def __init__(self) -> None:
        self.stages: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def stage(self, name: str, stage: str) -> None:
        if (name, stage) not in self.stages:
            self.stages.append((name, stage))

    def note(self, text: str) -> None:
        self.notes.append(text)


def server(name: str, port: int) -> ProcessSpec:
    return ProcessSpec(
        name=name,
        command=(sys.executable, "-c", SERVER, name, str(port)),
        ready_url=f"http://127.0.0.1:{port}/ready",
    )


def failing(name: str, code: int) -> ProcessSpec:
    script = f"import sys; print('bad setting', flush=True); sys.exit({code})"
    return ProcessSpec(
        name=name, command=(sys.executable, "-c", script), ready_url="http://127.0.0.1:1/ready"
    )


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


class Platform:
    """A supervisor of two replicas, a router and Redis, driven from the test's own thread."""

    def __init__(self, folder: Path, plan: LocalPlan | None = None) -> None:
        ports = free_ports(3)
        self.plan = plan or LocalPlan(
            replicas=(server("replica-0", ports[0]), server("replica-1", ports[1])),
            router=server("router", ports[2]),
            router_url=f"http://127.0.0.1:{ports[2]}",
            model_name="m",
        )
        self.folder = folder
        self.is_stopping = False
        self.hurry = False
        self.reporter = Recorder()
        self.redis = EmbeddedRedis(log_path=folder / "redis.log")
        self.supervisor = Supervisor(
            self.plan,
            redis=self.redis,
            log_folder=folder,
            reporter=self.reporter,
            stop_requested=lambda: self.is_stopping,
        )

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Supervises until `condition` holds."""

        def watch() -> None:
            eventually(condition)
            self.is_stopping = True

        thread = threading.Thread(target=watch)
        thread.start()
        self.supervisor.run()
        thread.join()
        self.is_stopping = False
        assert condition()

    def pid(self, name: str) -> int:
        """The process whose log is `name`'s, by its latest start."""
        for group in (self.supervisor._replicas, self.supervisor._router, self.supervisor._store):
            for watched in group:
                if watched.name == name and watched.child.pid:
                    return watched.child.pid
        raise AssertionError(name)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    platform = Platform(tmp_path)
    yield platform
    platform.supervisor.stop(hurry=lambda: True)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_everything_gets_ready_by_stages(platform: Platform) -> None:
    assert platform.supervisor.start() is True

    stages = platform.reporter.stages
    for name in ("replica-0", "replica-1", "router"):
        assert [stage for who, stage in stages if who == name] == ["starting", "loading", "ready"]
    assert stages[0] == ("redis", "ready")
    assert redis.Redis.from_url(platform.redis.url).ping()


def test_stop_ends_router_before_replicas_before_redis(platform: Platform) -> None:
    platform.supervisor.start()
    pids = [platform.pid(name) for name in ("router", "replica-0", "replica-1", "redis")]

    platform.supervisor.stop(hurry=lambda: False)

    stopped_at = {
        name: float(platform.log(name).split("stops ")[1])
        for name in ("router", "replica-0", "replica-1")
    }
    assert stopped_at["router"] + 0.2 <= min(stopped_at["replica-0"], stopped_at["replica-1"])
    assert not any(is_alive(pid) for pid in pids)
    assert not platform.redis.folder.exists()
    platform.supervisor.stop(hurry=lambda: False)  # safe to repeat


@pytest.mark.parametrize("name", ["replica-1", "router"])
def test_killed_process_is_started_again(platform: Platform, name: str) -> None:
    platform.supervisor.start()
    first = platform.pid(name)
    os.kill(first, signal.SIGKILL)

    platform.run_until(lambda: platform.log(name).count("starts") == 2)

    assert platform.pid(name) != first
    assert any(f"{name} was killed by signal 9" in note for note in platform.reporter.notes)


def test_killed_redis_comes_back_at_the_same_address(platform: Platform) -> None:
    platform.supervisor.start()
    client = redis.Redis.from_url(platform.redis.url, retry=None)
    client.set("key", "value")
    first = platform.pid("redis")
    os.kill(first, signal.SIGKILL)

    def is_back() -> bool:
        try:
            return bool(client.ping()) and platform.pid("redis") != first
        except redis.ConnectionError:
            return False

    platform.run_until(is_back)

    assert client.get("key") is None  # it keeps nothing on disk


def test_stop_requested_during_the_start_ends_it(platform: Platform) -> None:
    platform.is_stopping = True

    assert platform.supervisor.start() is False


@pytest.mark.parametrize(("code", "starts"), [(2, 1), (1, 3)])
def test_process_that_cannot_start_is_shown_with_its_log(
    tmp_path: Path, code: int, starts: int
) -> None:
    """Exit code 2 means a refused configuration: no second try."""
    plan = LocalPlan(
        replicas=(failing("replica-0", code),),
        router=server("router", free_ports(1)[0]),
        router_url="http://x",
        model_name="m",
    )
    broken = Platform(tmp_path, plan)
    try:
        with pytest.raises(ConfigError, match=rf"replica-0 ended with code {code}[^$]*bad setting"):
            broken.supervisor.start()
        assert broken.log("replica-0").count("bad setting") == starts
    finally:
        broken.supervisor.stop(hurry=lambda: True)


def test_hurry_kills_what_does_not_end(tmp_path: Path) -> None:
    stubborn = ProcessSpec(
        name="stubborn",
        command=(
            sys.executable,
            "-c",
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
            "print('ignores', flush=True); time.sleep(600)",
        ),
        stop_timeout_s=600,
    )
    plan = LocalPlan(
        replicas=(stubborn,),
        router=server("router", free_ports(1)[0]),
        router_url="http://x",
        model_name="m",
    )
    platform = Platform(tmp_path, plan)
    platform.supervisor.start()
    eventually(lambda: "ignores" in platform.log("stubborn"))
    pid = platform.pid("stubborn")
    began = time.monotonic()

    platform.supervisor.stop(hurry=lambda: True)

    assert time.monotonic() - began < 60
    assert not is_alive(pid)
    assert any("killing stubborn" in note for note in platform.reporter.notes)


def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    log = tmp_path / "parent.log"
    sleeper = (sys.executable, "-c", "import time; time.sleep(600)")
    script = (
        "import time\nfrom pathlib import Path\n"
        "from octavo.local.process import Child, ProcessSpec\n"
        f"child = Child(ProcessSpec(name='c', command={sleeper!r}), Path({str(log)!r}))\n"
        "child.start()\nprint(child.pid, flush=True)\ntime.sleep(600)\n"
    )
    parent = Child(ProcessSpec(name="p", command=(sys.executable, "-c", script)), log)
    parent.start()
    eventually(lambda: log.read_text().strip().isdigit())
    grandchild = int(log.read_text())
    assert is_alive(grandchild)
    assert parent.pid is not None

    os.kill(parent.pid, signal.SIGKILL)

    eventually(lambda: not is_alive(grandchild))
    parent.kill()
