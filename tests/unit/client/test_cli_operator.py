"""`octavo operator`: every setting has a flag, and what cannot be used is said in one line."""

import dataclasses
import socket
from pathlib import Path

import pytest

from octavo.cli.main import main
from octavo_operator.settings import OperatorSettings
from octavo_protocol.resources.pod_spec import PodTemplateSpec

NEEDED = ["--runtime-image", "octavo:1", "--redis-url", "redis://r:6379"]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[OperatorSettings]:
    """What the command would run with."""
    settings: list[OperatorSettings] = []
    monkeypatch.setattr("octavo_operator.run.run_operator", settings.append)
    return settings


def run(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as exit:
        main(["operator", *arguments])
    return exit.value.code


def test_defaults_are_the_settings_own(given: list[OperatorSettings]) -> None:
    assert run(*NEEDED) == 0
    assert given == [
        OperatorSettings(
            runtime_image="octavo:1", redis_url="redis://r:6379", identity=socket.gethostname()
        )
    ]


def test_every_setting_has_a_flag(given: list[OperatorSettings], tmp_path: Path) -> None:
    defaults = tmp_path / "pods.yaml"
    defaults.write_text("nodeSelector: {gpu: 'yes'}\n")
    flags = {
        "batch_image": ("--batch-image=octavo-router:1", "octavo-router:1"),
        "image_pull_policy": ("--image-pull-policy=Never", "Never"),
        "router_url": ("--router-url=http://router", "http://router"),
        "replica_api_key": ("--replica-api-key=inner", "inner"),
        "namespaces": ("--namespaces=a, b", ("a", "b")),
        "operator_namespace": ("--operator-namespace=here", "here"),
        "identity": ("--identity=me", "me"),
        "leader_election": ("--no-leader-election", False),
        "resync_s": ("--resync=60", 60.0),
        "pod_defaults": (
            f"--pod-defaults-file={defaults}",
            PodTemplateSpec(node_selector={"gpu": "yes"}),
        ),
        "health_port": ("--health-port=0", 0),
        "max_concurrent": ("--max-concurrent=2", 2),
        "log_level": ("--log-level=debug", "debug"),
    }
    assert run(*NEEDED, *(flag for flag, _ in flags.values())) == 0
    expected = {name: value for name, (_, value) in flags.items()}
    assert dataclasses.asdict(given[0]) == dataclasses.asdict(
        OperatorSettings(runtime_image="octavo:1", redis_url="redis://r:6379", **expected)  # type: ignore[arg-type]
    )
    missing = {each.name for each in dataclasses.fields(OperatorSettings)} - flags.keys()
    assert missing == {"runtime_image", "redis_url"}


def test_the_redis_url_comes_from_the_environment_and_is_not_shown(
    given: list[OperatorSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_REDIS_URL", "redis://:hidden-7@r:6379")
    assert run("--runtime-image", "octavo:1") == 0
    assert given[0].redis_url == "redis://:hidden-7@r:6379"
    assert "hidden-7" not in repr(given[0])


def test_without_redis_it_says_how_to_name_one(
    given: list[OperatorSettings],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OCTAVO_REDIS_URL", raising=False)
    assert run("--runtime-image", "octavo:1") == 2
    assert "set OCTAVO_REDIS_URL" in capsys.readouterr().err
    assert given == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nodeSelektor: {}\n", "nodeSelektor"),
        ("- a\n", "pods.yaml is not valid"),
        ("{", "cannot read the pod defaults"),
    ],
)
def test_pod_defaults_that_cannot_be_used_are_named(
    given: list[OperatorSettings],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    said: str,
) -> None:
    path = tmp_path / "pods.yaml"
    path.write_text(text)
    assert run(*NEEDED, f"--pod-defaults-file={path}") == 2
    assert said in capsys.readouterr().err
    assert given == []
