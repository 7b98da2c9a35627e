"""What the benchmarks of pooling compute, and that their engine part runs without a GPU."""

from typing import Any

import pytest
from benchmarks.gpu import pooling
from benchmarks.pooling import make_texts


def test_operations_of_one_layer() -> None:
    shape = {"hidden_size": 2, "intermediate_size": 8, "num_hidden_layers": 1}
    # 48 weights, each a multiplication and an addition for 3 tokens; 1 + 4 pairs of 2 elements.
    assert pooling.encoder_flops(shape, [1, 2]) == 2 * 48 * 3 + 4 * 2 * 5
    assert pooling.encoder_bytes(shape) == 2 * 48


def test_lengths_are_mixed_and_within_the_model() -> None:
    lengths = pooling.mixed_lengths(1024)
    assert min(lengths) == 16
    assert 508 <= max(lengths) <= 512
    assert sorted(lengths)[512] == pytest.approx((16 * 512) ** 0.5, rel=0.1)


def test_texts_are_of_all_lengths() -> None:
    counts = [len(text.split()) for text in make_texts(200)]
    assert min(counts) < 5
    assert max(counts) > 200


class FakeReport:
    rate, bandwidth = 1e12, 1e12

    def __init__(self) -> None:
        self.rows: dict[str, float] = {}

    def add(self, workload: str, model: str, value: float, unit: str, **more: Any) -> None:
        assert more["floor"] > 0
        self.rows[workload] = value


def test_engine_part_measures_each_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    shape = pooling.SHAPES["xlm-r-large"] | small | {"num_attention_heads": 1, "vocab_size": 1100}
    monkeypatch.setitem(pooling.SHAPES, "tiny", shape)
    monkeypatch.setattr(pooling, "mixed_lengths", lambda count: [16, 30])
    monkeypatch.setattr(pooling, "_LONGEST", 8)
    report = FakeReport()

    pooling.measure_engine("tiny", report)  # type: ignore[arg-type]

    assert set(report.rows) == {"E1", "E2", "E3"}
    assert all(value > 0 for value in report.rows.values())
