"""What a download tells the operator through Redis, and that it never fails for it."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import redis

from octavo.cli.main import main
from octavo.cli.redis_progress import RedisProgress
from octavo.local.ports import free_port
from octavo.local.redis_server import EmbeddedRedis
from octavo_protocol.errors import ConfigError
from octavo_protocol.keys import DOWNLOAD_TTL_S, Keys
from octavo_protocol.records import DownloadRecord, decode_download

pytestmark = pytest.mark.integration

KEYS = Keys("team", "chat")


@pytest.fixture(scope="module")
def client() -> Iterator["redis.Redis"]:
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        client.set("url", server.url)
        yield client


def url_of(client: "redis.Redis") -> str:
    return cast(bytes, client.get("url")).decode()


def told(client: "redis.Redis") -> DownloadRecord | None:
    raw = client.get(KEYS.download)
    return None if raw is None else decode_download(cast(bytes, raw))


def test_progress_is_told_every_two_seconds_and_forgotten_when_it_ends(
    client: "redis.Redis",
) -> None:
    now, seen = 0.0, []
    progress = RedisProgress(
        url_of(client), KEYS, "/models/m", lambda *each: seen.append(each), clock=lambda: now
    )
    progress("downloading m", 1, 10)
    progress("downloading m", 2, 10)
    assert told(client) == DownloadRecord("/models/m", "downloading m", 1, 10)
    now = 2.0
    progress("downloading m", 3, None)
    assert told(client) == DownloadRecord("/models/m", "downloading m", 3)
    assert 0 < int(str(client.ttl(KEYS.download))) <= DOWNLOAD_TTL_S
    assert seen == [("downloading m", 1, 10), ("downloading m", 2, 10), ("downloading m", 3, None)]


def test_without_redis_a_download_goes_on_and_asks_for_it_seldom() -> None:
    now, seen = 0.0, []
    url = f"redis://127.0.0.1:{free_port()}"
    progress = RedisProgress(
        url, KEYS, "/models/m", lambda *each: seen.append(each), clock=lambda: now
    )
    for done in range(3):
        progress("downloading m", done, 3)
    assert [done for _, done, _ in seen] == [0, 1, 2]


def test_a_url_that_cannot_be_one_is_refused_without_repeating_it() -> None:
    with pytest.raises(ConfigError, match="cannot be used") as refused:
        RedisProgress("http://:secret@x", KEYS, "/models/m", lambda *each: None)
    assert "secret" not in refused.value.message


def test_pull_tells_of_the_deployment_that_it_is_for(
    client: "redis.Redis", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.delete(KEYS.download)
    source, to = tmp_path / "source", tmp_path / "m"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "llama"}')
    (source / "model.safetensors").write_bytes(b"0" * 1000)
    monkeypatch.setenv("OCTAVO_REDIS_URL", url_of(client))
    words = ["models", "pull", str(source), "--to", str(to)]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--namespace", "team", "--deployment", "chat"])
    record = told(client)

    assert ended.value.code == 0
    assert record is not None
    assert (record.folder, record.stage) == (str(to), "copying")
