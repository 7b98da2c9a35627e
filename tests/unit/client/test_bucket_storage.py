"""Files in a bucket, by requests of S3's protocol and Google's like it: whole objects or none."""

from collections.abc import Iterator

import pytest
from tests.fakes.model_servers import S3Server, as_google, serving

from octavo import batch_storage
from octavo_protocol.errors import ConfigError, UnavailableError

NAME = "/results/a folder/out.jsonl"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A bucket `results` that can be written to; the environment has its address alone."""
    state = S3Server(files={"/results/in.jsonl": b"x" * 3_000_000}, is_writable=True)
    with serving(state):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_ENDPOINT_URL", state.url)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS_JSON", as_google(state))
        yield state


@pytest.fixture(params=["s3", "gs"])
def bucket(request: pytest.FixtureRequest) -> str:
    return f"{request.param}://results"


@pytest.fixture
def url(bucket: str) -> str:
    return f"{bucket}/a folder/out.jsonl"


def test_an_object_is_read_in_pieces(server: S3Server, bucket: str) -> None:
    assert b"".join(batch_storage.pieces(f"{bucket}/in.jsonl")) == b"x" * 3_000_000
    with pytest.raises(ConfigError, match=rf"{bucket}/none does not exist"):
        list(batch_storage.pieces(f"{bucket}/none"))


def test_an_object_is_written_in_parts_and_replaced_as_a_whole(
    server: S3Server, bucket: str, url: str
) -> None:
    batch_storage.write(url, (bytes([i]) * 2**20 for i in range(20)))
    assert server.files[NAME] == b"".join(bytes([i]) * 2**20 for i in range(20))
    batch_storage.write(url, [b"small"])
    batch_storage.write(f"{bucket}/empty", [])
    assert (server.files[NAME], server.files["/results/empty"]) == (b"small", b"")
    assert server.uploads == {}


def test_a_write_that_breaks_off_leaves_the_object_as_it_was(server: S3Server, url: str) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * 20 * 2**20
        raise UnavailableError("away")

    batch_storage.write(url, [b"before"])
    with pytest.raises(UnavailableError, match="away"):
        batch_storage.write(url, broken())
    assert (server.files[NAME], server.uploads) == (b"before", {})


def test_a_check_leaves_nothing_and_a_removal_of_nothing_is_no_error(
    server: S3Server, url: str
) -> None:
    before = set(server.files)
    batch_storage.check_writable(url)
    batch_storage.remove(url)
    assert set(server.files) == before
    batch_storage.write(url, [b"x"])
    batch_storage.remove(url)
    assert set(server.files) == before


@pytest.mark.parametrize(
    ("scheme", "variable"),
    [("s3", "AWS_ACCESS_KEY_ID"), ("gs", "GOOGLE_APPLICATION_CREDENTIALS_JSON")],
)
def test_a_bucket_that_refuses_is_told_before_anything_is_submitted(
    server: S3Server, scheme: str, variable: str
) -> None:
    server.is_writable = False
    with pytest.raises(ConfigError, match=rf"refuses access. Put credentials .* {variable}"):
        batch_storage.check_writable(f"{scheme}://results/out.jsonl")


def test_a_bucket_that_is_not_there_is_told(server: S3Server, bucket: str) -> None:
    with pytest.raises(ConfigError, match=r"nowhere/in.jsonl does not exist"):
        list(batch_storage.pieces(bucket.replace("results", "nowhere/in.jsonl")))


@pytest.mark.parametrize("url", ["s3://bucket", "s3:///path", "gs://bucket/"])
def test_a_url_without_bucket_or_path_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="://bucket/path"):
        batch_storage.check_writable(url)
