"""Models in buckets: real requests of S3's and Google's protocols, signed ones checked."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from tests.fakes.model_servers import Answer, S3Server, as_google, serving
from tests.unit.models.packed import MODEL, WEIGHTS, tar

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.cache import silent
from octavo_runtime.models.remote import fetch_remote, object_store, transfer

FETCHED = ["LICENSE", "config.json", "model.safetensors", "tokenizer.json"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A bucket `models` with a model in `chat/v1`; the environment has its address alone."""
    state = S3Server(files={f"/models/chat/v1/{name}": content for name, content in MODEL.items()})
    with serving(state):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_ENDPOINT_URL", state.url)
        monkeypatch.setattr(transfer, "_FIRST_PAUSE_S", 0.0)
        yield state


def fetched(source: str, folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    fetch_remote(source, silent, folder)
    return sorted(path.name for path in folder.iterdir())


def answer_but(refused_range: str) -> Callable[[S3Server, str, Mapping[str, str]], Answer]:
    """The server's answers, except to requests for a part that begins so."""
    answer = S3Server.answer

    def instead(server: S3Server, path: str, headers: Mapping[str, str]) -> Answer:
        is_refused = headers.get("range", "").startswith(refused_range)
        return Answer(400) if is_refused else answer(server, path, headers)

    return instead


@pytest.mark.parametrize("path", ["chat/v1", "chat/v1/"])
def test_folder_of_a_public_bucket_is_fetched(server: S3Server, tmp_path: Path, path: str) -> None:
    assert fetched(f"s3://models/{path}", tmp_path / "m") == FETCHED
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == WEIGHTS
    assert not any("README" in path or ".bin" in path for path, _ in server.requests)
    assert not any("authorization" in headers for _, headers in server.requests)


def test_folders_of_sentence_transformers_modules_come_along(
    server: S3Server, tmp_path: Path
) -> None:
    for name in ("1_Pooling/config.json", "1_Pooling/notes.md", "onnx/config.json"):
        server.files[f"/models/chat/v1/{name}"] = b"{}"

    assert fetched("s3://models/chat/v1", tmp_path / "m") == sorted([*FETCHED, "1_Pooling"])
    assert [path.name for path in (tmp_path / "m/1_Pooling").iterdir()] == ["config.json"]


def test_requests_are_signed_with_the_credentials_of_the_environment(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.secrets = {"me": "secret"}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    assert fetched("s3://models/chat/v1", tmp_path / "m") == FETCHED


@pytest.mark.parametrize("secret", ["", "wrong-secret"])
def test_refused_credentials_are_explained_and_not_shown(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    server.secrets = {"me": "secret"}
    if secret:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)

    with pytest.raises(ConfigError, match=r"refuses access.*AWS_SECRET_ACCESS_KEY") as caught:
        fetched("s3://models/chat/v1", tmp_path / "m")

    assert "wrong-secret" not in str(caught.value)


def test_google_bucket_is_fetched(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS_JSON", as_google(server))

    assert fetched("gs://models/chat/v1", tmp_path / "m") == FETCHED


def test_one_archive_of_a_bucket_is_fetched(server: S3Server, tmp_path: Path) -> None:
    server.files["/models/packed.tar"] = tar(MODEL, below="x/")

    assert fetched("s3://models/packed.tar", tmp_path / "m") == FETCHED


def test_large_object_is_read_in_windows(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_WINDOW_BYTES", 300_000)

    assert fetched("s3://models/chat/v1", tmp_path / "m") == FETCHED
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [
        headers.get("range")
        for path, headers in server.requests
        if path.endswith("model.safetensors")
    ]
    assert ranges == ["bytes=0-299999", "bytes=300000-599999", "bytes=600000-639999"]


def test_next_call_goes_on_after_a_failure(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_WINDOW_BYTES", 300_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Server, "answer", answer_but("bytes=300000-"))
        with pytest.raises(ConfigError, match="goes on from there"):
            fetched("s3://models/chat/v1", tmp_path / "m")
    server.requests.clear()

    assert fetched("s3://models/chat/v1", tmp_path / "m") == FETCHED
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == WEIGHTS
    assert all(headers.get("range") != "bytes=0-299999" for _, headers in server.requests)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("s3://models/chat", r"only folders: v1\. Name one"),
        ("s3://models/none", "has no model in it"),
        ("s3://nowhere/x", "s3://nowhere/x: there is no such bucket"),
        ("s3://models/none.tar", "s3://models/none.tar does not exist"),
        ("s3:///x", "write s3://bucket/path"),
        ("s3://key:secret@models/x", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_wrong_sources_are_explained(
    server: S3Server, tmp_path: Path, source: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fetched(source, tmp_path / "m")
