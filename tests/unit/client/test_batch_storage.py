"""URLs that are read and written: whole files or none, and errors that name the URL."""

import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from octavo import batch_storage
from octavo_protocol.batch_runs import errors_beside
from octavo_protocol.errors import ConfigError, UnavailableError


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """A file system that is none of this machine's, as a bucket is."""
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()


def broken() -> Iterator[bytes]:
    yield b"half"
    raise UnavailableError("away")


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_local_file_is_replaced_as_a_whole(tmp_path: Path, prefix: str) -> None:
    target = tmp_path / "new folder" / "out.jsonl"
    url = f"{prefix}{target}"
    batch_storage.check_writable(url)
    batch_storage.write(url, [b"a", b"b"])
    with pytest.raises(UnavailableError):
        batch_storage.write(url, broken())
    assert target.read_bytes() == b"".join(batch_storage.pieces(url)) == b"ab"
    assert os.listdir(target.parent) == ["out.jsonl"]


def test_what_a_killed_run_left_long_ago_is_removed(tmp_path: Path) -> None:
    old, new = tmp_path / ".out.1.part", tmp_path / ".out.2.part"
    for leftover in (old, new):
        leftover.write_bytes(b"half")
    os.utime(old, (0, 0))
    batch_storage.write(str(tmp_path / "out"), [b"new"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.2.part", "out"]


def test_an_object_of_another_file_system_appears_when_it_is_complete(
    memory: fsspec.AbstractFileSystem,
) -> None:
    url = "memory://bucket/out.jsonl"
    with pytest.raises(UnavailableError):
        batch_storage.write(url, broken())
    assert not memory.exists("/bucket/out.jsonl")
    batch_storage.check_writable(url)
    batch_storage.write(url, [b"a", b"b"])
    assert memory.find("/") == ["/bucket/out.jsonl"]
    assert b"".join(batch_storage.pieces(url)) == b"ab"
    batch_storage.remove(url)
    batch_storage.remove(url)
    assert memory.find("/") == []


def test_a_web_server_is_read_as_a_stream(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"x" * 3_000_000)
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            read = list(batch_storage.pieces(f"{url}/in.jsonl"))
            with pytest.raises(ConfigError, match=r"cannot read http.*none: it answered 404"):
                list(batch_storage.pieces(f"{url}/none"))
        finally:
            server.shutdown()
            serving.join()
    assert (len(b"".join(read)), max(map(len, read)) <= 2**20) == (3_000_000, True)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("/no/such/file", "cannot read /no/such/file: No such file"),
        ("pvc://claim/file", "pvc:// is for BatchJobs"),
        ("nothing://x/y", "cannot read nothing://x/y: Protocol not known"),
        ("http://127.0.0.1:9/x", "cannot read http://127.0.0.1:9/x: "),
    ],
)
def test_what_cannot_be_read_is_said_with_its_url(url: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        list(batch_storage.pieces(url))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://x/y", "an http URL can be read only"),
        ("pvc://claim/file", "pvc:// is for BatchJobs"),
        ("/", "cannot write /: it is a folder"),
        ("/proc/version/out", "cannot write /proc/version/out: "),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is_submitted(
    url: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        batch_storage.check_writable(url)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("output", "errors"),
    [
        ("s3://b/c/out.jsonl", "s3://b/c/out.errors.jsonl"),
        ("out", "out.errors"),
        ("/a.b/out", "/a.b/out.errors"),
        ("pvc://claim/a.x.jsonl", "pvc://claim/a.x.errors.jsonl"),
    ],
)
def test_errors_lie_beside_the_output(output: str, errors: str) -> None:
    assert errors_beside(output) == errors
