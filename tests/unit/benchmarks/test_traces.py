"""Public traces become requests: lengths, times, and which prefixes are shared."""

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.traces import agent_sessions, servegen_burst

CHARS = 512  # of one block


def call(at_s: float, text: str, session: str, output: str = "x" * 40) -> dict[str, Any]:
    return {"timestamp": int(at_s * 1e6), "input": text, "output": output, "session_id": session}


def test_calls_of_a_session_share_the_blocks_of_their_common_beginning(tmp_path: Path) -> None:
    begin, more = "a" * CHARS, "b" * CHARS
    sessions = {
        "one": [call(100.0, begin, "one"), call(103.5, begin + more + "c", "one")],
        "two": [call(900.0, more, "two"), call(901.0, "", "two")],
    }
    for name, calls in sessions.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, calls)))

    requests = agent_sessions(tmp_path, within_s=10.0)

    assert len(requests) == 3  # the call without a prompt is left out
    assert requests == sorted(requests, key=lambda each: each.arrival_s)
    first, second = (each for each in requests if each.session == "one")
    (other,) = (each for each in requests if each.session == "two")
    assert 0 <= first.arrival_s < 10
    assert second.arrival_s - first.arrival_s == 3.5
    assert (first.num_prompt_tokens, second.num_prompt_tokens) == (128, 257)
    assert first.num_output_tokens == 10
    assert len(second.hashes) == 2  # full blocks only
    assert second.hashes[0] == first.hashes[0]
    assert other.hashes[0] not in second.hashes  # the same text, after another beginning


def test_a_burst_has_the_rate_lengths_and_variation_of_its_window(tmp_path: Path) -> None:
    (tmp_path / "chunk-0-trace.csv").write_text(
        "0,1,1,Gamma,1,1\n600,5,3,Gamma,0.1111,1\n1200,0,0,,0,0\n"
    )
    (tmp_path / "chunk-1-trace.csv").write_text("600,100,9,Gamma,0.5,1\n")  # without lengths
    lengths = {"0": {"input_tokens": "{1000: 1.0}", "output_tokens": "{7: 1.0}"}}
    (tmp_path / "chunk-0-dataset.json").write_text(json.dumps(lengths))

    requests = servegen_burst(tmp_path, block_size=512, share=2.0)

    gaps = [after.arrival_s - before.arrival_s for before, after in itertools.pairwise(requests)]
    assert 5000 < len(requests) < 7000  # 2 x 5 a second for 600 seconds
    assert 2.5 < statistics.stdev(gaps) / statistics.fmean(gaps) < 3.5
    assert {(each.num_prompt_tokens, each.num_output_tokens) for each in requests} == {(1000, 7)}
    assert len({each.hashes for each in requests}) == len(requests)
    assert all(len(each.hashes) == 1 for each in requests)
