"""What an adapter's source leads to; the other sources are the models'."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from tests.fakes.model_servers import FileServer, serving

from octavo_protocol.errors import AdapterNotFoundError
from octavo_runtime.models.adapter_source import resolve_adapter, shown_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    return folder


def test_local_folder_is_used_where_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))

    for source in (
        str(folder),
        "my adapter",
        "./my adapter",
        "~/my adapter",
        f"file://{folder.parent}/my%20adapter",
    ):
        assert resolve_adapter(source) == folder


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere", "no LoRA adapter at /nowhere: there is no such folder"),
        ("./nowhere", "there is no such folder"),
        ("file:///nowhere", "there is no such folder"),
        (".", "it has no adapter_config.json"),
        ("pvc://claim/a", "pvc:// is for manifests"),
        ("ftp://host/a", "unknown scheme ftp://"),
        ("no such name!", "there is no model"),
    ],
)
def test_source_that_leads_nowhere_says_where_was_looked(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AdapterNotFoundError) as error:
        resolve_adapter(source)
    assert message in error.value.message


def test_folders_have_no_revisions(folder: Path) -> None:
    with pytest.raises(AdapterNotFoundError, match="folders have no revisions"):
        resolve_adapter(str(folder), revision="v1")


def test_a_file_url_with_two_slashes_is_told_apart_from_a_folder_that_is_missing() -> None:
    with pytest.raises(AdapterNotFoundError, match="with three slashes"):
        resolve_adapter("file://adapters/sql")


def archive(*names: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            content = json.dumps({}).encode()
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def test_adapter_is_fetched_from_the_web_and_pickled_ones_are_not(tmp_path: Path) -> None:
    files = {
        "/good.tar": archive("a/adapter_config.json", "a/adapter_model.safetensors"),
        "/bad.tar": archive("a/adapter_config.json", "a/adapter_model.bin"),
    }
    with serving(server := FileServer(files)):
        found = resolve_adapter(f"{server.url}/good.tar?key=secret", cache_dir=tmp_path)
        with pytest.raises(AdapterNotFoundError, match="no safetensors weights") as error:
            resolve_adapter(f"{server.url}/bad.tar?key=secret", cache_dir=tmp_path)

    assert sorted(path.name for path in found.glob("a*")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert "secret" not in error.value.message


def test_a_source_is_shown_without_what_a_url_hides() -> None:
    assert shown_source("https://u:p@host/a?sig=1") == "https://host/a"
    assert shown_source("org/name") == "org/name"
