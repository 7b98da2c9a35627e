"""Models from a web server: one archive or GGUF file, resumed, checked and explained."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.fakes.model_servers import FileServer, serving
from tests.unit.models.packed import MODEL, WEIGHTS, tar, zipped
from tests.unit.models.tiny_gguf import TinyGguf

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.cache import silent
from octavo_runtime.models.gguf import convert_gguf
from octavo_runtime.models.remote import fetch_remote, patience, transfer

FETCHED = ["LICENSE", "config.json", "model.safetensors", "tokenizer.json"]


@pytest.fixture
def server() -> Iterator[FileServer]:
    state = FileServer()
    with serving(state):
        yield state


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.0)
    monkeypatch.delenv("HTTP_TOKEN", raising=False)


def fetched(source: str, folder: Path, *, allow_pickle: bool = False) -> list[str]:
    """Fetches; the names of what is then there."""
    folder.mkdir(exist_ok=True)
    fetch_remote(source, silent, folder, allow_pickle=allow_pickle)
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("model.tar", lambda: tar(MODEL)),
        ("model.tar.gz", lambda: tar(MODEL, below="./top/model/", mode="w:gz")),
        ("model.tgz", lambda: tar(MODEL, below="model/", mode="w:gz")),
        ("model.zip", lambda: zipped(MODEL, below="model/")),
    ],
)
def test_archive_becomes_a_model_folder(
    server: FileServer, tmp_path: Path, name: str, pack: Callable[[], bytes]
) -> None:
    server.files[f"/{name}"] = pack()

    assert fetched(f"{server.url}/{name}", tmp_path / "m") == FETCHED
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == WEIGHTS


def test_pickles_are_fetched_only_when_asked_for(server: FileServer, tmp_path: Path) -> None:
    server.files["/m.tar"] = tar({"config.json": b"{}", "pytorch_model.bin": b"pickle"})

    with pytest.raises(ConfigError, match=r"no safetensors weights.*not fetched"):
        fetched(f"{server.url}/m.tar", tmp_path / "a")
    assert fetched(f"{server.url}/m.tar", tmp_path / "b", allow_pickle=True) == [
        "config.json",
        "pytorch_model.bin",
    ]


def test_single_gguf_file_is_converted(server: FileServer, tmp_path: Path) -> None:
    path = TinyGguf().write(tmp_path / "tiny.gguf")
    server.files["/tiny.gguf"] = path.read_bytes()
    (expected := tmp_path / "expected").mkdir()
    convert_gguf(path, expected)

    names = fetched(f"{server.url}/tiny.gguf", tmp_path / "m")

    assert names == sorted(each.name for each in expected.iterdir())
    for name in names:
        assert (tmp_path / "m" / name).read_bytes() == (expected / name).read_bytes()


def test_adapter_is_taken_too(server: FileServer, tmp_path: Path) -> None:
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"1"}
    server.files["/a.zip"] = zipped(files)

    assert fetched(f"{server.url}/a.zip", tmp_path / "m") == sorted(files)


def test_progress_is_in_bytes_and_ends_at_the_total(server: FileServer, tmp_path: Path) -> None:
    server.files["/m.tar"] = content = tar(MODEL)
    told: list[tuple[str, int, int | None]] = []
    fetch_remote(f"{server.url}/m.tar", lambda *args: told.append(args), tmp_path)

    assert {(stage, total) for stage, _, total in told} == {("downloading m.tar", len(content))}
    counts = [done for _, done, _ in told]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, len(content))


def test_broken_connection_goes_on_where_it_was(server: FileServer, tmp_path: Path) -> None:
    server.files["/m.tar"] = content = tar(MODEL)
    server.cut_after, server.num_cuts = 100_000, 3

    assert fetched(f"{server.url}/m.tar", tmp_path / "m") == FETCHED
    assert server.num_sent == len(content) + 1
    ranges = [headers.get("range") for _, headers in server.requests]
    assert ranges == ["bytes=0-0", None, *(f"bytes={100_000 * n}-" for n in (1, 2, 3))]


def test_server_without_ranges_is_read_again_from_the_start(
    server: FileServer, tmp_path: Path
) -> None:
    server.files["/m.tar"] = tar(MODEL)
    server.cut_after, server.num_cuts, server.has_ranges = 300_000, 2, False

    assert fetched(f"{server.url}/m.tar", tmp_path / "m") == FETCHED
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == WEIGHTS


def test_busy_server_is_asked_again(server: FileServer, tmp_path: Path) -> None:
    server.files["/m.tar"] = tar(MODEL)
    server.fails = [503, 429]

    assert fetched(f"{server.url}/m.tar", tmp_path / "m") == FETCHED


def test_next_call_goes_on_after_a_failure(server: FileServer, tmp_path: Path) -> None:
    server.files["/m.tar"] = content = tar(MODEL)
    server.cut_after, server.num_cuts = 0, 1000
    with pytest.raises(ConfigError, match=r"6 attempts in a row failed.*goes on from there"):
        fetched(f"{server.url}/m.tar", tmp_path / "m")
    server.cut_after, server.num_cuts = 400_000, 1
    server.fails = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "_MAX_FAILURES", 0)
        with pytest.raises(ConfigError, match="goes on from there"):
            fetched(f"{server.url}/m.tar", tmp_path / "m")
    before = server.num_sent

    assert fetched(f"{server.url}/m.tar", tmp_path / "m") == FETCHED
    assert server.num_sent - before == len(content) - 400_000 + 1


def test_changed_file_is_not_put_together_from_halves(server: FileServer, tmp_path: Path) -> None:
    server.files["/m.tar"] = tar(MODEL)
    server.cut_after, server.num_cuts = 400_000, 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "_MAX_FAILURES", 0)
        with pytest.raises(ConfigError):
            fetched(f"{server.url}/m.tar", tmp_path / "m")
    server.files["/m.tar"] = tar({**MODEL, "model.safetensors": WEIGHTS[::-1]})

    assert fetched(f"{server.url}/m.tar", tmp_path / "m") == FETCHED
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == WEIGHTS[::-1]


def test_file_that_changes_while_it_is_fetched_is_refused(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/m.tar"] = tar(MODEL)
    server.cut_after, server.num_cuts = 400_000, 1
    changed = tar({**MODEL, "config.json": b"[]"})
    monkeypatch.setattr(
        transfer._Attempts, "pause", lambda *_: server.files.update({"/m.tar": changed})
    )

    with pytest.raises(ConfigError, match="changed while it was fetched"):
        fetched(f"{server.url}/m.tar", tmp_path / "m")


def test_token_is_sent_and_not_to_another_host(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_TOKEN", "secret")
    server.token = "secret"
    with serving(storage := FileServer(files={"/signed/m.tar": tar(MODEL)})):
        elsewhere = storage.url.replace("127.0.0.1", "localhost")
        server.redirects["/m.tar"] = f"{elsewhere}/signed/m.tar"

        assert fetched(f"{server.url}/m.tar", tmp_path / "m") == FETCHED

    assert all("authorization" not in headers for _, headers in storage.requests)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/none.tar", "none.tar does not exist"),
        ("/folder/", r"one file: a .gguf file or an archive \(.tar, "),
        ("/", "one file"),
    ],
)
def test_wrong_addresses_are_explained(
    server: FileServer, tmp_path: Path, path: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fetched(f"{server.url}{path}", tmp_path / "m")


def test_refusal_says_where_the_token_goes_and_shows_no_secret(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = "right"
    monkeypatch.setenv("HTTP_TOKEN", "wrong-token")

    with pytest.raises(ConfigError, match=r"refuses access \(403\).*HTTP_TOKEN") as caught:
        fetched(f"{server.url}/m.tar?signature=abc", tmp_path / "m")

    assert "wrong-token" not in str(caught.value)
    assert "signature" not in str(caught.value)


def test_password_in_an_address_is_refused_and_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="HTTP_TOKEN") as caught:
        fetched("https://me:secret@host.example/m.tar", tmp_path / "m")

    assert "secret" not in str(caught.value)


def test_nobody_there_is_explained(server: FileServer, tmp_path: Path) -> None:
    with serving(gone := FileServer()):
        url = gone.url

    with pytest.raises(ConfigError, match=r"cannot be reached: .*HTTPS_PROXY"):
        fetched(f"{url}/m.tar", tmp_path / "m")
