"""What the GPU benchmark computes from what it measures."""

import json
from pathlib import Path

import pytest
from benchmarks.gpu.busy import busy_share
from benchmarks.gpu.models import SHAPES, kv_bytes_per_token, weight_bytes, write_model
from benchmarks.gpu.report import Report, merged

from octavo_protocol.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("intervals", "share"),
    [
        ([(5, 7)], 1.0),
        ([(0, 4), (8, 10)], 0.6),
        ([(8, 10), (0, 4)], 0.6),
        ([(0, 10), (2, 3), (4, 12)], 1.0),
        ([(0, 4), (1, 2), (3, 5), (9, 10)], 0.6),
    ],
)
def test_overlapping_kernels_are_counted_once(
    intervals: list[tuple[int, int]], share: float
) -> None:
    assert busy_share(intervals) == pytest.approx(share)


def test_new_rows_replace_those_of_the_same_model_and_workload() -> None:
    def row(workload: str, value: int) -> dict[str, object]:
        return {"model": "m", "workload": workload, "value": value}

    rows = merged([row("W1", 1), row("W3", 3)], [row("W1", 2), row("W2", 4)])

    assert [(each["workload"], each["value"]) for each in rows] == [("W1", 2), ("W3", 3), ("W2", 4)]


def test_row_has_what_a_record_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.gpu.report.read_bandwidth", lambda: 4.5e12)
    monkeypatch.setattr("benchmarks.gpu.report.matmul_rate", lambda: 8e14)
    report = Report()

    report.add("W2 8", "llama-3.1-8b", 4.0, "ms", floor=2.0, batch=8)

    assert report.records == [
        {
            "workload": "W2 8",
            "model": "llama-3.1-8b",
            "batch": 8,
            "value": 4.0,
            "unit": "ms",
            "floor": 2.0,
            "vllm": 5.21,
            "higher_is_better": False,
        }
    ]
    assert capsys.readouterr().out.split()[-4:] == ["2.00", "5.21", "2.00x", "0.77x"]


def test_shapes_are_those_of_the_models(tmp_path: Path) -> None:
    assert weight_bytes("llama-3.1-8b") == pytest.approx(15.0e9, rel=0.01)
    assert kv_bytes_per_token("llama-3.1-8b") == 131072
    assert weight_bytes("qwen3-0.6b") == pytest.approx(1.19e9, rel=0.01)


def test_model_folder_needs_no_download(tmp_path: Path) -> None:
    folder = write_model("qwen3-0.6b", tmp_path / "m")

    assert json.loads((folder / "config.json").read_text()) == SHAPES["qwen3-0.6b"]
    assert Tokenizer.from_folder(folder).encode("word") == [0]
