"""What a capture of traffic says, and what it keeps to itself."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from octavo.sim.trace import read_trace
from octavo_protocol.errors import ConfigError
from octavo_router.capture import TrafficCapture

Captures = Callable[..., TrafficCapture]
USAGE = b'{"usage": {"prompt_tokens": 70, "completion_tokens": 5, "total_tokens": 75}}'
HASHES = tuple(bytes([number]) * 16 for number in range(5))


@pytest.fixture
def capture() -> Iterator[Captures]:
    """Makes captures that are open until the test ends."""
    with ExitStack() as stack:

        def make(path: Path, **settings: Any) -> TrafficCapture:
            made = TrafficCapture(path, clock=lambda: 100.0, **settings)
            made.open()
            stack.callback(made.close)
            return made

        yield make


def add(to: TrafficCapture, **changes: Any) -> None:
    request: dict[str, Any] = {
        "arrived": 100.0,
        "hashes": HASHES,
        "hash_tokens": 16,
        "num_prompt_tokens": 90,
        "session": None,
        "answer": USAGE,
        **changes,
    }
    to.add(**request)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_request_is_a_line_with_times_lengths_and_coarser_blocks(
    tmp_path: Path, capture: Captures
) -> None:
    path = tmp_path / "trace.jsonl"
    traffic = capture(path, block_size=32)
    add(traffic, arrived=101.25)
    [line] = lines(path)
    ids = line.pop("hash_ids")
    assert line == {
        "timestamp": 1250,
        "input_length": 90,
        "output_length": 5,
        "block_size": 32,
    }
    assert len(set(ids)) == 2  # of 5 blocks of 16 tokens: the second and the fourth
    assert all(0 <= each < 2**53 for each in ids)


def test_equal_prefixes_have_equal_ids_in_one_capture_and_others_in_the_next(
    tmp_path: Path, capture: Captures
) -> None:
    found = []
    for name in ("a", "b"):
        traffic = capture(tmp_path / name, block_size=16)
        add(traffic, session="chat-1")
        add(traffic, hashes=(*HASHES[:2], b"x" * 16), session="chat-1")
        found.append(lines(tmp_path / name))
    (first, second), (other, _) = found
    assert first["hash_ids"][:2] == second["hash_ids"][:2]
    assert first["hash_ids"][2] != second["hash_ids"][2]
    assert first["session_id"] == second["session_id"] != other["session_id"]
    assert not set(first["hash_ids"]) & set(other["hash_ids"])
    assert "chat-1" not in (tmp_path / "a").read_text()


def test_output_tokens_come_from_the_answer_or_else_from_its_trace(
    tmp_path: Path, capture: Captures
) -> None:
    traffic = capture(tmp_path / "t")
    anthropic = b'{"input_tokens": 9, "output_tokens": 1}, {"output_tokens": 7}'
    add(traffic, answer=anthropic, num_output_tokens=3)
    add(traffic, answer=b"data: [DONE]", num_output_tokens=3)
    add(traffic, answer=b"data: [DONE]")
    assert [line["output_length"] for line in lines(tmp_path / "t")] == [7, 3, 0]


def test_a_prompt_that_was_not_tokenized_has_the_length_that_the_answer_tells(
    tmp_path: Path, capture: Captures
) -> None:
    traffic = capture(tmp_path / "t")
    add(traffic, hashes=(), hash_tokens=0, num_prompt_tokens=0)
    add(traffic, hashes=(), hash_tokens=0, num_prompt_tokens=0, answer=b"{}")
    assert lines(tmp_path / "t") == [{"timestamp": 0, "input_length": 70, "output_length": 5}]


def test_two_files_together_stay_within_the_bound(tmp_path: Path, capture: Captures) -> None:
    path = tmp_path / "t"
    path.write_text("of an earlier capture\n")
    traffic = capture(path, max_bytes=2000)
    assert (tmp_path / "t.1").read_text() == "of an earlier capture\n"
    for number in range(100):
        add(traffic, arrived=100.0 + number)
        assert sum(each.stat().st_size for each in tmp_path.iterdir()) <= 2000
    assert {each.name for each in tmp_path.iterdir()} == {"t", "t.1"}
    times = [line["timestamp"] for name in ("t.1", "t") for line in lines(tmp_path / name)]
    assert times == list(range(times[0], 100_000, 1000))  # without a gap


def test_the_simulator_reads_a_capture(tmp_path: Path, capture: Captures) -> None:
    traffic = capture(tmp_path / "t", block_size=16)
    add(traffic, session="a")
    add(traffic, arrived=103.0, session="a")
    first, second = read_trace(tmp_path / "t", block_size=16)
    assert (first.arrival_s, second.arrival_s) == (0.0, 3.0)
    assert first.hashes == second.hashes
    assert len(first.hashes) == 5
    assert first.session == second.session is not None
    assert (first.num_prompt_tokens, first.num_output_tokens) == (90, 5)


def test_a_file_that_cannot_be_written_is_refused_at_the_start(
    tmp_path: Path, capture: Captures
) -> None:
    with pytest.raises(ConfigError, match=r"cannot capture to .*nowhere"):
        capture(tmp_path / "nowhere" / "t")


def test_a_full_disk_ends_the_capture_and_no_request(
    caplog: pytest.LogCaptureFixture, capture: Captures
) -> None:
    traffic = capture(Path("/dev/full"))
    with caplog.at_level(logging.WARNING):
        add(traffic)
        add(traffic)
    assert [record.getMessage() for record in caplog.records] == [
        "the capture to /dev/full ends: [Errno 28] No space left on device"
    ]
