"""Files in a bucket, by requests of S3's protocol: whole objects or none."""

from collections.abc import Iterator

import pytest
from tests.fakes.model_servers import S3Server, serving

from octavo import batch_storage
from octavo_protocol.errors import ConfigError, UnavailableError

URL = "s3://results/a folder/out.jsonl"
NAME = "/results/a folder/out.jsonl"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A bucket `results` that can be written to; the environment has its address alone."""
    state = S3Server(files={"/results/in.jsonl": b"x" * 3_000_000}, is_writable=True)
    with serving(state):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_ENDPOINT_URL", state.url)
        yield state


def test_an_object_is_read_in_pieces(server: S3Server) -> None:
    assert b"".join(batch_storage.pieces("s3://results/in.jsonl")) == b"x" * 3_000_000
    with pytest.raises(ConfigError, match=r"s3://results/none does not exist"):
        list(batch_storage.pieces("s3://results/none"))


def test_an_object_is_written_in_parts_and_replaced_as_a_whole(server: S3Server) -> None:
    batch_storage.write(URL, (bytes([i]) * 2**20 for i in range(20)))
    assert server.files[NAME] == b"".join(bytes([i]) * 2**20 for i in range(20))
    batch_storage.write(URL, [b"small"])
    batch_storage.write("s3://results/empty", [])
    assert (server.files[NAME], server.files["/results/empty"]) == (b"small", b"")
    assert server.uploads == {}


def test_a_write_that_breaks_off_leaves_the_object_as_it_was(server: S3Server) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * 20 * 2**20
        raise UnavailableError("away")

    batch_storage.write(URL, [b"before"])
    with pytest.raises(UnavailableError, match="away"):
        batch_storage.write(URL, broken())
    assert (server.files[NAME], server.uploads) == (b"before", {})


def test_a_check_leaves_nothing_and_a_removal_of_nothing_is_no_error(server: S3Server) -> None:
    before = set(server.files)
    batch_storage.check_writable(URL)
    batch_storage.remove(URL)
    assert set(server.files) == before
    batch_storage.write(URL, [b"x"])
    batch_storage.remove(URL)
    assert set(server.files) == before


def test_a_bucket_that_refuses_is_told_before_anything_is_submitted(server: S3Server) -> None:
    server.is_writable = False
    with pytest.raises(ConfigError, match=r"refuses access. Put credentials .* AWS_ACCESS_KEY_ID"):
        batch_storage.check_writable(URL)


@pytest.mark.parametrize("url", ["s3://bucket", "s3:///path", "gs://bucket/"])
def test_a_url_without_bucket_or_path_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="://bucket/path"):
        batch_storage.check_writable(url)
