"""Hub repositories: what is asked for, and what each refusal tells the user."""

from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.hub import fetch_repository, is_repository_name


def response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "http://hub"))


def fail_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(name: str, **settings: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


def test_only_safe_files_of_the_pinned_revision_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").touch()
    asked: dict[str, Any] = {}

    def download(name: str, **settings: Any) -> str:
        asked.update(settings, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    assert fetch_repository("org/name", revision="abc") == tmp_path
    assert (asked["name"], asked["revision"]) == ("org/name", "abc")
    wanted = ["config.json", "1_Pooling/config.json", "12_Dense/model.safetensors"]
    others = [
        "model.bin",
        "onnx/config.json",
        "1_Dense/a/b.json",
        "2024/x.json",
        "a/1_Dense/b.json",
    ]
    found = huggingface_hub.utils.filter_repo_objects(
        [*wanted, *others],
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert list(found) == wanted


def test_repository_without_safetensors_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path))

    with pytest.raises(ConfigError, match="no safetensors weights"):
        fetch_repository("org/name", revision=None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError("x", response=response(403)), "accept its terms.*HF_TOKEN"),
        (errors.RepositoryNotFoundError("x", response=response(404)), "no model 'org/name'"),
        (errors.RevisionNotFoundError("x", response=response(404)), "no revision 'v9'"),
        (errors.LocalEntryNotFoundError("x"), "cannot be reached"),
        (httpx.ConnectError("x"), "cannot be reached"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_refusals_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    fail_with(monkeypatch, error)

    with pytest.raises(ConfigError, match=message):
        fetch_repository("org/name", revision="v9")


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("org/name", True), ("gpt2", True), ("a/b/c", False), ("../x", False), ("a b", False)],
)
def test_repository_names(name: str, is_one: bool) -> None:
    assert is_repository_name(name) is is_one
