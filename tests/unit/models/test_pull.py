"""A pulled folder is whole or not marked; a cached model from elsewhere is fetched once."""

import errno
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import huggingface_hub
import pytest
from tests.fakes.model_servers import FileServer, serving
from tests.unit.models.packed import MODEL, WEIGHTS, tar
from tests.unit.models.tiny_gguf import TinyGguf

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.inventory import cached_models, remove_cached
from octavo_runtime.models.pull import Pulled, pull_model
from octavo_runtime.models.remote import transfer
from octavo_runtime.models.source import remote_key, resolve_model

FILES = ["LICENSE", "config.json", "model.safetensors", "tokenizer.json"]
NUM_BYTES = sum(len(MODEL[name]) for name in FILES)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(transfer, "_FIRST_PAUSE_S", 0.0)
    state = FileServer({"/m.tar": tar(MODEL)})
    with serving(state):
        yield state


def shown(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_folder_is_filled_marked_and_not_fetched_again(server: FileServer, tmp_path: Path) -> None:
    folder, source = tmp_path / "cache" / "m", f"{server.url}/m.tar?signature=secret"

    first = pull_model(source, folder)
    num_requests = len(server.requests)
    second = pull_model(source, folder)

    assert first == Pulled(folder, 4, NUM_BYTES, was_there=False)
    assert second == Pulled(folder, 4, NUM_BYTES, was_there=True)
    assert len(server.requests) == num_requests
    assert shown(folder) == FILES
    marker = json.loads((folder / ".octavo-model.json").read_text())
    assert marker == {"source": f"{server.url}/m.tar"}


def test_complete_folder_needs_no_right_to_write(server: FileServer, tmp_path: Path) -> None:
    pull_model(f"{server.url}/m.tar", tmp_path)
    (tmp_path / ".octavo-lock").unlink()

    pull_model(f"{server.url}/m.tar", tmp_path)

    assert not (tmp_path / ".octavo-lock").exists()


def test_of_two_at_once_one_fetches(server: FileServer, tmp_path: Path) -> None:
    barrier, results = Barrier(2), []

    def pull() -> None:
        barrier.wait()
        results.append(pull_model(f"{server.url}/m.tar", tmp_path / "m").was_there)

    threads = [Thread(target=pull) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(results) == [False, True]
    assert server.num_sent == len(server.files["/m.tar"]) + 1


def test_failed_pull_is_not_marked_and_is_continued(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cut_after, server.num_cuts = 400_000, 1
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_MAX_FAILURES", 0)
        with pytest.raises(ConfigError, match="goes on from there"):
            pull_model(f"{server.url}/m.tar", tmp_path)
    assert shown(tmp_path) == []
    before = server.num_sent

    assert pull_model(f"{server.url}/m.tar", tmp_path).num_files == 4
    assert server.num_sent - before == len(server.files["/m.tar"]) - 400_000 + 1
    assert {path.name for path in tmp_path.iterdir()} == {
        *FILES,
        ".octavo-lock",
        ".octavo-model.json",
    }


def pull_and_die(url: str, folder: Path) -> None:
    """Ends the process as a kill would, when half has come."""

    def progress(stage: str, done: int, total: int | None) -> None:
        if done > 300_000:
            os._exit(9)

    pull_model(url, folder, progress=progress)


def test_killed_pull_is_continued(server: FileServer, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=pull_and_die, args=(f"{server.url}/m.tar", tmp_path))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert shown(tmp_path) == []

    pull_model(f"{server.url}/m.tar", tmp_path)

    assert shown(tmp_path) == FILES
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS


def test_other_model_is_not_mixed_in(server: FileServer, tmp_path: Path) -> None:
    pull_model(f"{server.url}/m.tar", tmp_path)

    with pytest.raises(ConfigError, match=r"holds http.*/m\.tar \(revision none\)"):
        pull_model("smollm2", tmp_path)


def test_folder_of_other_files_is_left_alone(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")

    with pytest.raises(ConfigError, match=r"holds other files, such as thesis\.txt"):
        pull_model(f"{server.url}/m.tar", tmp_path)

    assert shown(tmp_path) == ["thesis.txt"]


def test_full_disk_is_said_and_leaves_nothing(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil._ntuple_diskusage(10**9, 10**9, 600_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)

    with pytest.raises(ConfigError, match=r"the disk is full.*1 MB needed, 1 MB free.*--to"):
        pull_model(f"{server.url}/m.tar", tmp_path / "m")
    with pytest.raises(ConfigError, match="the disk is full"):
        resolve_model(f"{server.url}/m.tar", cache_dir=tmp_path / "cache")

    assert [path.name for path in (tmp_path / "m").iterdir()] == [".octavo-lock"]
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_disk_that_fills_up_on_the_way_leaves_nothing(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(transfer, "_append", full)

    with pytest.raises(ConfigError, match="the disk is full"):
        pull_model(f"{server.url}/m.tar", tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == [".octavo-lock"]


def test_gguf_file_and_model_folder_can_be_pulled(tmp_path: Path) -> None:
    gguf = TinyGguf().write(tmp_path / "tiny.gguf")

    first = pull_model(str(gguf), tmp_path / "a")
    second = pull_model(str(tmp_path / "a"), tmp_path / "b")

    assert shown(first.folder) == shown(second.folder)
    assert (first.num_files, first.num_bytes) == (second.num_files, second.num_bytes)


def test_folders_of_sentence_transformers_modules_are_pulled_too(tmp_path: Path) -> None:
    for name in ("config.json", "1_Pooling/config.json", "onnx/config.json", "1_Pooling/a/b.json"):
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_text(name)

    pulled = pull_model(str(tmp_path / "model"), tmp_path / "copy").folder

    files = {str(path.relative_to(pulled)) for path in pulled.rglob("*.json")}
    assert {"config.json", "1_Pooling/config.json"} <= files
    assert not any(name.startswith("onnx") or name.endswith("b.json") for name in files)


def test_hub_model_is_pulled_into_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, *, local_dir: Path, **settings: Any) -> str:
        asked.update(settings, name=name)
        (local_dir / ".cache" / "huggingface").mkdir(parents=True)
        for file in ("config.json", "model.safetensors"):
            (local_dir / file).write_text(file)
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    pulled = pull_model("hf://org/name", tmp_path, revision="abc")

    assert (asked["name"], asked["revision"]) == ("org/name", "abc")
    assert pulled.num_files == 2
    assert not (tmp_path / ".cache").exists()
    with pytest.raises(ConfigError, match="revision abc"):
        pull_model("hf://org/name", tmp_path, revision="def")


def test_remote_model_is_kept_in_the_cache(server: FileServer, tmp_path: Path) -> None:
    source = f"{server.url}/m.tar"

    first = resolve_model(source, cache_dir=tmp_path)
    num_requests = len(server.requests)

    assert resolve_model(source, cache_dir=tmp_path, local_only=True) == first
    assert len(server.requests) == num_requests
    assert shown(first) == FILES
    assert [row.name for row in cached_models(tmp_path)] == [remote_key(source)]
    assert remove_cached(source, tmp_path) == NUM_BYTES
    assert cached_models(tmp_path) == []


def test_failed_fetch_leaves_no_entry_and_is_continued(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cut_after, server.num_cuts = 400_000, 1
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_MAX_FAILURES", 0)
        with pytest.raises(ConfigError, match="goes on from there"):
            resolve_model(f"{server.url}/m.tar", cache_dir=tmp_path)
    assert cached_models(tmp_path) == []
    before = server.num_sent

    resolve_model(f"{server.url}/m.tar", cache_dir=tmp_path)

    assert server.num_sent - before == len(server.files["/m.tar"]) - 400_000 + 1


def test_remote_model_that_is_not_here_is_not_fetched_when_told_so(
    server: FileServer, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="octavo models pull"):
        resolve_model(f"{server.url}/m.tar", cache_dir=tmp_path, local_only=True)

    assert server.requests == []


def test_remote_sources_have_no_revisions(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="s3:// sources have no revisions"):
        pull_model("s3://bucket/model", tmp_path, revision="v1")
