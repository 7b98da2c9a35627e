"""`octavo tenants` and the flags of the router that go with it."""

from pathlib import Path

import pytest

from octavo.cli.main import main
from octavo_protocol.errors import ConfigError
from octavo_router.options import RouterOptions
from octavo_router.tenancy.directory import load_directory


def run(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ending:
        main(list(arguments))
    return ending.value.code


def test_a_new_key_opens_what_its_lines_are_put_into(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("tenants", "new-key", "acme", "--id", "ci") == 0
    key, _, lines = capsys.readouterr().out.partition("\n")
    path = tmp_path / "tenants.yaml"
    path.write_text(f"secret: {'s' * 32}\ntenants:\n" + lines[lines.index("  - name") :])
    caller = load_directory(path).authenticate(key.encode())
    assert caller is not None
    assert (caller.tenant.name, caller.key_id, len(key)) == ("acme", "ci", 39)

    assert run("tenants", "check", str(path)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "TENANT  KEYS  MODELS  WEIGHT  PRIORITY  LIMITS",
        "acme       1  *       1       0         none",
    ]


def test_no_two_keys_are_alike(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        run("tenants", "new-key", "acme")
    first, second = (part for part in capsys.readouterr().out.split("\n") if part[:7] == "octavo-")
    assert first != second


def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("tenants", "new-key", "no/name") == 2
    path = tmp_path / "tenants.yaml"
    path.write_text(f"secret: {'s' * 32}\n")
    assert run("tenants", "check", str(path)) == 2
    path.write_text("tenants: 7\n")
    assert run("tenants", "check", str(path)) == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert "use letters, digits and ._-" in first
    assert "names no tenant" in second
    assert "line 1: tenants: Input should be a valid list" in third


def test_the_router_gets_its_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[RouterOptions] = []
    monkeypatch.setattr("octavo_router.server.run_router", given.append)
    flags = "--usage-records 7 --queue-requests 8 --queue-tokens 9k --replica-backlog 1.5"
    path = str(tmp_path / "tenants.yaml")
    assert run("router", "--redis-url", "redis://r", "--tenants", path, *flags.split()) == 0
    assert run("router", "--redis-url", "redis://r") == 0
    assert given[0] == RouterOptions(
        host="127.0.0.1",
        redis_url="redis://r",
        tenants=Path(path),
        usage_records=7,
        queue_requests=8,
        queue_tokens=9000,
        replica_backlog_s=1.5,
    )
    assert given[1] == RouterOptions(host="127.0.0.1", redis_url="redis://r")


def test_a_router_without_tenants_holds_nothing_back() -> None:
    assert RouterOptions(redis_url="r").queues.max_requests == 0
    assert RouterOptions(redis_url="r", tenants=Path("t")).queues.max_requests == 1024
    assert RouterOptions(redis_url="r", queue_requests=5).queues.max_requests == 5
    with pytest.raises(ConfigError, match="leave --api-key out"):
        RouterOptions(redis_url="r", tenants=Path("t"), api_key=("k",))
