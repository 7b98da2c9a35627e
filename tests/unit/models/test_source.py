"""What a model name leads to, without fetching anything."""

from pathlib import Path

import pytest
from tests.unit.models.tiny_gguf import TinyGguf

from octavo_protocol.errors import ConfigError
from octavo_runtime.models import source
from octavo_runtime.models.cache import cache_root
from octavo_runtime.models.catalogue import SMOLLM2, find_entry
from octavo_runtime.models.inventory import cached_models, remove_cached
from octavo_runtime.models.source import catalogue_key, resolve_model


def model_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_cache_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("OCTAVO_CACHE", raising=False)
    assert cache_root() == Path("/home/x/.cache/octavo")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_root() == Path("/xdg/octavo")
    monkeypatch.setenv("OCTAVO_CACHE", "/mine")
    assert cache_root() == Path("/mine")


def test_local_folder_is_used_where_it_is(tmp_path: Path, cache: Path) -> None:
    folder = model_folder(tmp_path / "a b")

    assert resolve_model(str(folder), cache_dir=cache) == folder
    assert resolve_model(f"file://{tmp_path}/a%20b", cache_dir=cache) == folder
    assert not cache.exists()


def test_relative_model_folder_goes_before_catalogue(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = model_folder(tmp_path / "smollm2")

    assert resolve_model("smollm2", cache_dir=cache) == folder


@pytest.mark.parametrize(
    "name",
    [
        "smollm2",
        "SmolLM2",
        "hf://smollm2",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "hf://HuggingFaceTB/SmolLM2-135M-Instruct",
    ],
)
def test_catalogue_names_lead_to_one_folder(cache: Path, name: str) -> None:
    expected = cache / "models" / catalogue_key(SMOLLM2)
    expected.mkdir(parents=True)

    assert resolve_model(name, cache_dir=cache) == expected


def test_gguf_file_is_converted_once(tmp_path: Path, cache: Path) -> None:
    path = TinyGguf().write(tmp_path / "tiny.gguf")

    first = resolve_model(str(path), cache_dir=cache)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    again = resolve_model(str(path), cache_dir=cache)

    assert first == again
    assert (again / "model.safetensors").stat().st_mtime_ns == stamp
    assert [row.name for row in cached_models(cache)] == [first.name]
    assert not list((cache / "models").glob(".partial-*"))


def test_changed_gguf_file_is_converted_anew(tmp_path: Path, cache: Path) -> None:
    path = TinyGguf().write(tmp_path / "tiny.gguf")
    first = resolve_model(str(path), cache_dir=cache)
    TinyGguf(tied=False).write(path)

    assert resolve_model(str(path), cache_dir=cache) != first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/model", "no model at /nowhere/model"),
        ("nowhere.gguf", "no model at"),
        ("smollm3", r"not in the catalogue \(smollm2, minilm, "),
        ("", "empty"),
        ("pvc://claim/x", "pvc:// is for manifests"),
        ("ftp://x", "unknown scheme ftp://"),
        ("file://host/x", "three slashes"),
        ("hf://a/b/c", "no model 'hf://a/b/c'"),
    ],
)
def test_wrong_names_are_explained(cache: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_model(name, cache_dir=cache)


def test_folder_without_a_model_names_the_gguf_in_it(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "x.gguf").touch()
    with pytest.raises(ConfigError, match=r"Give its file instead: .*x\.gguf"):
        resolve_model(str(tmp_path), cache_dir=cache)


def test_catalogue_refuses_a_revision(cache: Path) -> None:
    with pytest.raises(ConfigError, match="has no revisions"):
        resolve_model("smollm2", revision="main", cache_dir=cache)


def test_local_only_fetches_nothing(tmp_path: Path, cache: Path) -> None:
    path = TinyGguf().write(tmp_path / "tiny.gguf")
    for name in ("smollm2", str(path)):
        with pytest.raises(ConfigError, match="octavo models pull"):
            resolve_model(name, cache_dir=cache, local_only=True)
    assert not cache.exists()


def test_hub_names_go_to_the_hub_with_their_revision(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def fetch(name: str, *, revision: str | None, local_only: bool) -> Path:
        asked.append((name, revision))
        return Path("/hub")

    monkeypatch.setattr(source, "fetch_repository", fetch)

    assert resolve_model("org/name", revision="v1", cache_dir=cache) == Path("/hub")
    assert resolve_model("hf://gpt2", cache_dir=cache) == Path("/hub")
    assert asked == [("org/name", "v1"), ("gpt2", None)]


def test_removed_model_is_gone(tmp_path: Path, cache: Path) -> None:
    folder = resolve_model(str(TinyGguf().write(tmp_path / "tiny.gguf")), cache_dir=cache)
    size = sum(path.stat().st_size for path in folder.iterdir())

    assert remove_cached(folder.name, cache) == size
    assert not folder.exists()
    with pytest.raises(ConfigError, match="there is: nothing"):
        remove_cached(folder.name, cache)


def test_unknown_entry_is_none() -> None:
    assert find_entry("gpt-5") is None
