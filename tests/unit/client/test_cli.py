"""The command line itself: flags arrive where they should, failures are one clear line."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from octavo.cli.main import main
from octavo_router.options import RouterOptions
from octavo_runtime.config import EngineConfig
from octavo_runtime.server.serve import ServeOptions


@dataclass
class Recorded:
    """Stands for the servers; keeps the options that they were started with."""

    options: Any = None

    def run(self, options: ServeOptions | RouterOptions) -> None:
        self.options = options


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    record = Recorded()
    monkeypatch.setattr("octavo_runtime.server.serve.run_replica", record.run)
    monkeypatch.setattr("octavo_router.server.run_router", record.run)
    return record


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text("{}")
    return str(tmp_path)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ending:
        main(arguments)
    code = ending.value.code
    return code if isinstance(code, int) else 0


def test_serve_defaults_are_the_engine_configs(recorded: Recorded, model: str) -> None:
    assert run("serve", model) == 0
    assert recorded.options.engine == EngineConfig(model=Path(model))
    assert recorded.options.served_names == (model,)
    assert (recorded.options.host, recorded.options.port) == ("127.0.0.1", 8000)
    assert recorded.options.redis_url is None


def test_serve_passes_every_flag(recorded: Recorded, model: str) -> None:
    flags = (
        "--served-model-name a b --host 0.0.0.0 --port 9000 --dtype float32 --max-model-len 4K "
        "--max-num-seqs 8 --max-num-batched-tokens 1k --long-prefill-token-threshold 128 "
        "--block-size 32 --no-enable-prefix-caching --scheduling-policy priority "
        "--num-gpu-blocks-override 99 --kv-cache-memory-bytes 1Mi --kv-memory-fraction 0.1 "
        "--seed 7 --load-format dummy --threads 2 --redis-url redis://x --namespace ns "
        "--deployment d --replica-id r --advertise-url http://me --drain-timeout 5 "
        "--max-body-bytes 1M --log-level debug"
    )
    assert run("serve", model, *flags.split()) == 0
    options = recorded.options
    assert options.engine == EngineConfig(
        model=Path(model),
        dtype="float32",
        max_model_len=4096,
        max_num_seqs=8,
        max_num_batched_tokens=1000,
        long_prefill_token_threshold=128,
        block_size=32,
        enable_prefix_caching=False,
        scheduling_policy="priority",
        num_gpu_blocks_override=99,
        kv_cache_memory_bytes=2**20,
        kv_memory_fraction=0.1,
        seed=7,
        load_format="dummy",
        num_threads=2,
    )
    assert options.served_names == ("a", "b")
    assert (options.host, options.port, options.max_body_bytes) == ("0.0.0.0", 9000, 2**20)
    assert (options.namespace, options.deployment, options.replica_id) == ("ns", "d", "r")
    assert (options.redis_url, options.advertise_url) == ("redis://x", "http://me")
    assert (options.drain_timeout_s, options.log_level) == (5.0, "debug")


def test_flags_can_come_from_the_environment(
    recorded: Recorded, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_MAX_MODEL_LEN", "2Ki")
    monkeypatch.setenv("OCTAVO_ENABLE_PREFIX_CACHING", "0")
    monkeypatch.setenv("OCTAVO_PORT", "9001")

    assert run("serve", model, "--port", "9002") == 0

    assert recorded.options.engine.max_model_len == 2048
    assert recorded.options.engine.enable_prefix_caching is False
    assert recorded.options.port == 9002  # the flag wins


def test_router_takes_replica_urls(recorded: Recorded) -> None:
    assert run("router", "--replica-url", "http://a", "--replica-url", "http://b") == 0
    assert recorded.options == RouterOptions(
        host="127.0.0.1", replica_urls=("http://a", "http://b")
    )


def test_router_listens_as_a_replica_does(recorded: Recorded) -> None:
    flags = "--replica-url http://a --api-key k l --allowed-origins http://x --port 9 --uds /s"
    assert run("router", *flags.split(), "--replica-api-key", "inner") == 0
    assert recorded.options == RouterOptions(
        replica_urls=("http://a",),
        host="127.0.0.1",
        port=9,
        uds=Path("/s"),
        api_key=("k", "l"),
        allowed_origins=("http://x",),
        replica_api_key="inner",
    )


def test_router_of_all_deployments_takes_namespaces(recorded: Recorded) -> None:
    flags = "--redis-url redis://r --all-deployments --namespaces a,b --drain-delay 10"
    assert run("router", *flags.split()) == 0
    assert recorded.options == RouterOptions(
        host="127.0.0.1",
        redis_url="redis://r",
        all_deployments=True,
        namespaces=("a", "b"),
        drain_delay_s=10,
    )


@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        ("--replica-url http://a --all-deployments", "--all-deployments needs --redis-url"),
        ("--redis-url redis://r --namespaces a", "--namespaces filters --all-deployments"),
    ],
)
def test_router_refuses_flags_that_do_not_go_together(
    flags: str, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("router", *flags.split()) == 2
    assert advice in capsys.readouterr().err


def test_router_without_replicas_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("router") == 2
    assert "--redis-url" in capsys.readouterr().err


def test_errors_are_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "path", "/nowhere") == 2
    assert capsys.readouterr().err == "octavo: there is no model at /nowhere\n"


def test_debug_adds_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_DEBUG", "1")
    assert run("models", "path", "/nowhere") == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("octavo: there is no model at /nowhere\n")


def test_missing_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*arguments: Any, **settings: Any) -> None:
        raise ModuleNotFoundError("No module named 'zmq.x'", name="zmq.x")

    monkeypatch.setattr("octavo.cli.main.app", missing)
    assert run("serve", "smollm2") == 2
    assert "pip install 'octavo[runtime]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "",
        "serve",
        "router",
        "up",
        "chat",
        "complete",
        "run-batch",
        "bench serve",
        "doctor",
        "version",
        "models",
        "models pull",
    ],
)
def test_help_is_quick_to_import(command: str) -> None:
    """Help must not load what only a running command needs."""
    script = (
        "import sys\n"
        "from octavo.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as ending: assert ending.code == 0, ending.code\n"
        "heavy = {'torch', 'transformers', 'numba', 'httpx', 'redis', 'gguf', 'numpy', 'uvicorn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *command.split(), "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Usage: octavo")
