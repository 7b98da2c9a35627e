"""A ModelDeployment and a machine's facts give exactly these processes."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from octavo.cli.main import app
from octavo.local.plan import LocalPlan, MachineFacts, plan
from octavo_protocol.errors import ConfigError
from octavo_protocol.resources.model_deployment import (
    ModelDeployment,
    load_manifest,
    parse_manifest,
)

REPOSITORY = Path(__file__).parents[3]
FACTS = MachineFacts(
    files=Path("/run/files"),
    model=Path("/models/x"),
    num_cores=8,
    redis_url="unix:///tmp/r.sock",
    replica_ports=(9001, 9002, 9003),
    environment={"OCTAVO_PORT": "1", "OCTAVO_CACHE": "/c", "HOME": "/h"},
)


def deployment(**spec: Any) -> ModelDeployment:
    return parse_manifest(
        {
            "apiVersion": "octavo.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": "m", "namespace": "team"},
            "spec": {"model": {"source": "smollm2"}, **spec},
        }
    )


def planned(manifest: ModelDeployment, *, host: str = "127.0.0.1", **facts: Any) -> LocalPlan:
    return plan(
        manifest, dataclasses.replace(FACTS, **facts), host=host, port=8000, log_level="info"
    )


def flags(command: tuple[str, ...]) -> dict[str, list[str]]:
    """The command's flags with their values, in order."""
    found: dict[str, list[str]] = {}
    for index, part in enumerate(command):
        if part.startswith("--"):
            following = command[index + 1] if index + 1 < len(command) else "--"
            found.setdefault(part, []).extend([] if following.startswith("--") else [following])
    return found


def test_replicas_share_cores_and_memory() -> None:
    result = planned(deployment(replicas=3))

    assert [spec.name for spec in result.replicas] == ["replica-0", "replica-1", "replica-2"]
    for index, spec in enumerate(result.replicas):
        given = flags(spec.command)
        assert given["--threads"] == ["2"]
        assert given["--port"] == [str(9001 + index)]
        assert given["--replica-id"] == [f"m-{index}"]
        assert given["--kv-memory-fraction"] == ["0.133"]
        assert (given["--namespace"], given["--deployment"]) == (["team"], ["m"])
        assert spec.env["OMP_NUM_THREADS"] == "2"
        assert spec.ready_url == f"http://127.0.0.1:{9001 + index}/ready"


def test_more_replicas_than_cores_get_one_thread_each() -> None:
    result = planned(deployment(replicas=3), num_cores=2)

    assert [flags(spec.command)["--threads"] for spec in result.replicas] == [["1"]] * 3


def test_one_replica_leaves_memory_for_others() -> None:
    given = flags(planned(deployment()).replicas[0].command)

    assert given["--threads"] == ["8"]
    assert given["--kv-memory-fraction"] == ["0.300"]


def test_manifest_settings_become_flags() -> None:
    engine = {
        "dtype": "float32",
        "maxModelLen": 512,
        "maxNumSeqs": 4,
        "maxNumBatchedTokens": 256,
        "blockSize": 32,
        "kvCacheMemoryMib": 64,
        "enablePrefixCaching": False,
        "schedulingPolicy": "priority",
    }
    manifest = deployment(engine=engine, servedNames=["a", "b"], routing={"policy": "round-robin"})

    result = planned(manifest)
    given = flags(result.replicas[0].command)

    assert given["--served-model-name"] == ["a", "b"]
    assert given["--dtype"] == ["float32"]
    assert given["--max-model-len"] == ["512"]
    assert given["--max-num-seqs"] == ["4"]
    assert given["--max-num-batched-tokens"] == ["256"]
    assert given["--block-size"] == ["32"]
    assert given["--kv-cache-memory-bytes"] == [str(64 * 2**20)]
    assert "--kv-memory-fraction" not in given
    assert "--no-enable-prefix-caching" in given
    assert given["--scheduling-policy"] == ["priority"]
    assert flags(result.router.command)["--policy"] == ["round-robin"]
    assert result.model_name == "a"


def test_parsers_and_extra_arguments_become_flags() -> None:
    engine = {
        "toolCallParser": "hermes",
        "reasoningParser": "qwen3",
        "extraArgs": ["--max-logprobs", "5", "--seed=1"],
    }
    command = planned(deployment(engine=engine)).replicas[0].command
    given = flags(command)

    assert given["--tool-call-parser"] == ["hermes"]
    assert "--enable-auto-tool-choice" in given
    assert given["--reasoning-parser"] == ["qwen3"]
    assert given["--max-logprobs"] == ["5"]
    assert "--seed=1" in command


@pytest.mark.parametrize("word", ["--host", "--redis-url=redis://x", "--served_model_name"])
def test_extra_argument_that_the_platform_sets_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="is set by the platform"):
        deployment(engine={"extraArgs": [word]})


def test_parser_name_cannot_be_a_flag() -> None:
    with pytest.raises(ConfigError, match="toolCallParser"):
        deployment(engine={"toolCallParser": "--host"})


def test_users_environment_does_not_leak_into_children() -> None:
    result = planned(deployment())

    for spec in (*result.replicas, result.router):
        assert spec.env["OCTAVO_PORT"] is None
        assert spec.env["OCTAVO_REDIS_URL"] == "unix:///tmp/r.sock"
        assert "OCTAVO_CACHE" not in spec.env
        assert "HOME" not in spec.env


def test_redis_password_is_not_in_any_command() -> None:
    result = planned(deployment(), redis_url="redis://:secret@host/0")

    for spec in (*result.replicas, result.router):
        assert "secret" not in " ".join(spec.command)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
    ],
)
def test_router_is_reached_where_it_listens(host: str, url: str) -> None:
    result = planned(deployment(), host=host)

    assert result.router_url == url
    assert flags(result.router.command)["--host"] == [host]


def test_commands_are_ones_that_the_cli_has(tmp_path: Path) -> None:
    """Every flag that a plan uses is a flag of `octavo serve` or `octavo router`."""
    result = planned(load_manifest(REPOSITORY / "examples" / "01-smollm2.yaml"))

    for spec, name in ((result.replicas[0], "serve"), (result.router, "router")):
        known = flag_names(name)
        assert set(flags(spec.command)) <= known, set(flags(spec.command)) - known


def flag_names(command: str) -> set[str]:
    import typer.main

    group: Any = typer.main.get_command(app)
    parameters = group.commands[command].params
    return {flag for p in parameters for flag in (*p.opts, *p.secondary_opts)}


def test_adapters_of_the_manifest_are_modules_of_every_replica() -> None:
    adapters = [{"name": "sql", "model": {"source": "org/sql"}}]
    folders = {"sql": Path("/adapters/s=l")}
    result = planned(deployment(replicas=2, adapters=adapters), adapters=folders)

    for spec in result.replicas:
        given = flags(spec.command)
        assert given["--enable-lora"] == []
        assert given["--max-loras"] == ["8"]
        assert given["--lora-modules"] == ['{"name": "sql", "path": "/adapters/s=l"}']


def test_room_for_adapters_is_the_manifests() -> None:
    lora = {"maxLoras": 2, "maxLoraRank": 64, "maxCpuLoras": 16}
    given = flags(planned(deployment(lora=lora)).replicas[0].command)

    assert given["--max-loras"] == ["2"]
    assert given["--max-lora-rank"] == ["64"]
    assert given["--max-cpu-loras"] == ["16"]
    assert "--enable-lora" not in flags(planned(deployment()).replicas[0].command)
