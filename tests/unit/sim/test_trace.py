"""Traces become requests, and what cannot be read is said with its line."""

from pathlib import Path

import pytest

from octavo.sim.trace import TraceRequest, faster, load_trace, read_trace
from octavo_protocol.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "trace.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def test_requests_come_by_arrival_with_their_blocks(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"timestamp": 2000, "input_length": 9, "output_length": 3, "hash_ids": [0, 7, 8]}\n'
        '{"timestamp": 500, "input_length": 8, "output_length": 0, "hash_ids": [0, 5]}\n',
    )
    assert read_trace(path, block_size=4) == [
        TraceRequest(0.0, 8, 1, (b"0", b"5")),
        TraceRequest(1.5, 9, 3, (b"0", b"7", b"8")),
    ]
    assert len(read_trace(path, block_size=4, limit=1)) == 1
    assert [each.arrival_s for each in faster(read_trace(path, block_size=4), 2)] == [0.0, 0.75]


def test_blocks_of_another_size_make_prompts_and_answers_longer_or_shorter(tmp_path: Path) -> None:
    line = '{"timestamp": 0, "input_length": 1000, "output_length": 100, "hash_ids": [1, 2]}\n'
    mooncake = write(tmp_path, line)
    assert load_trace(mooncake)[1] == 512
    [request], size = load_trace(mooncake, block_size=64)
    assert (request.num_prompt_tokens, request.num_output_tokens, size) == (125, 12, 64)
    assert request.hashes == (b"1", b"2")


def test_a_captured_trace_says_the_size_of_its_blocks(tmp_path: Path) -> None:
    unknown = '{"timestamp": 0, "input_length": 9, "output_length": 1}\n'
    line = (
        '{"timestamp": 4, "input_length": 40, "output_length": 1, "hash_ids": [7, 8],'
        ' "block_size": 16}\n'
    )
    requests, size = load_trace(write(tmp_path, unknown + line), speed=2)
    assert size == 16
    assert [each.arrival_s for each in requests] == [0.0, 0.002]
    assert requests[1].hashes == (b"7", b"8")


def test_requests_without_hash_ids_share_nothing(tmp_path: Path) -> None:
    line = '{"timestamp": 0, "input_length": 9, "output_length": 1}\n'
    first, second = read_trace(write(tmp_path, line * 2), block_size=4)
    assert len(first.hashes) == len(second.hashes) == 3
    assert not set(first.hashes) & set(second.hashes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no request"),
        ("{}\n", "line 1: Object missing required field `timestamp`"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1}\nnothing\n', "line 2"),
        (
            '{"timestamp": 0, "input_length": 0, "output_length": 1}\n',
            "`int` >= 1 - at `\\$.input_length`",
        ),
        (
            '{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": 3}\n',
            "Expected `array \\| null`, got `int` - at `\\$.hash_ids`",
        ),
    ],
)
def test_a_bad_trace_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_trace(write(tmp_path, text), block_size=4)


def test_a_missing_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the trace"):
        read_trace(tmp_path / "none", block_size=4)
