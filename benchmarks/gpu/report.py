"""What the measurements of a GPU share: its ceilings, vLLM's numbers, and the table of rows."""

import json
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import conditions

# vLLM 0.25.0 on one H200, defaults, dummy weights, token ids in and out.
VLLM: dict[str, dict[str, float]] = {
    "qwen3-0.6b": {
        "W1": 23951,
        "W2 1": 1.67,
        "W2 8": 1.78,
        "W2 32": 2.59,
        "W2 64": 3.64,
        "W2 128": 5.66,
        "W2 256": 9.75,
        "W3 16x2048": 386045,
        "W3 1x8192": 249386,
        "W4 on": 0.88,
        "ready cold": 44.6,
        "ready warm": 14.7,
    },
    "llama-3.1-8b": {
        "W1": 10142,
        "W2 1": 4.94,
        "W2 8": 5.21,
        "W2 32": 6.22,
        "W2 64": 7.48,
        "W2 128": 10.32,
        "W2 256": 17.10,
        "W3 16x2048": 42851,
        "W3 1x8192": 38067,
        "W4 on": 1.81,
        "W4 off": 11.53,
        "W5 4 ttft p50": 22.5,
        "W5 4 ttft p99": 41.9,
        "W5 4 tpot p50": 5.06,
        "W5 16 ttft p50": 25.6,
        "W5 16 ttft p99": 45.8,
        "W5 16 tpot p50": 6.15,
        "W5 32 ttft p50": 34.4,
        "W5 32 ttft p99": 68.6,
        "W5 32 tpot p50": 8.95,
        "W5 40 ttft p50": 41.3,
        "W5 40 ttft p99": 114,
        "W5 40 tpot p50": 10.90,
        "W5 48 ttft p50": 50.3,
        "W5 48 ttft p99": 147,
        "W5 48 tpot p50": 13.07,
        "ready cold": 41.9,
        "ready warm": 21,
    },
}


Rows = list[dict[str, Any]]


class Report:
    """Prints each row and collects the records.

    Floors are times, or rates, that this GPU cannot better: what a row's bytes take at `bandwidth`
    (bytes per second that it reads), what its operations take at `rate` (bf16 operations per
    second). Both are measured first, in the same run.
    """

    def __init__(self) -> None:
        self.records: Rows = []
        self.bandwidth, self.rate = read_bandwidth(), matmul_rate()
        print(f"read {self.bandwidth / 1e12:.2f} TB/s, bf16 {self.rate / 1e12:.0f} TFLOP/s")
        print(f"{'model':14}{'row':18}{'value':>12}{'unit':>10}", end="")
        print(f"{'floor':>11}{'vLLM':>11}{'to floor':>10}{'to vLLM':>9}")

    def add(
        self,
        workload: str,
        model: str,
        value: float,
        unit: str,
        *,
        floor: float | None = None,
        batch: int | None = None,
        higher_is_better: bool = False,
        **more: Any,
    ) -> None:
        """more: conditions of this row alone."""
        vllm = VLLM.get(model, {}).get(workload)
        columns = [f"{model:14}{workload:18}{value:12.2f}{unit:>10}"]
        columns += [f"{'' if other is None else f'{other:.2f}':>11}" for other in (floor, vllm)]
        for other, width in ((floor, 10), (vllm, 9)):
            columns.append(f"{'' if other is None else f'{value / other:.2f}x':>{width}}")
        print("".join(columns), flush=True)
        self.records.append(
            {
                "workload": workload,
                "model": model,
                "batch": batch,
                "value": value,
                "unit": unit,
                "floor": floor,
                "vllm": vllm,
                "higher_is_better": higher_is_better,
                **more,
            }
        )

    def write(self, path: Path) -> None:
        """Puts the rows into the file, in place of former ones of the same model and workload."""
        machine = {"read_tb_s": self.bandwidth / 1e12, "matmul_tflop_s": self.rate / 1e12}
        write_rows(path, [record | machine for record in self.records])


def write_rows(path: Path, rows: Rows) -> None:
    """With the conditions of this run; see `merged`."""
    machine = conditions() | {"gpu": torch.cuda.get_device_name()}
    former = json.loads(path.read_text()) if path.is_file() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    new = [row | machine for row in rows]
    path.write_text(json.dumps(merged(former, new), indent=1) + "\n")


def merged(former: Rows, new: Rows) -> Rows:
    """All rows; a new one in place of the former of the same model and workload."""
    rows = {(row["model"], row["workload"]): row for row in [*former, *new]}
    return list(rows.values())


def read_bandwidth() -> float:
    """Bytes per second of reading 8 GB once, the best of several."""
    data = torch.ones(2**31, dtype=torch.float32, device="cuda").view(2**10, -1)
    times = [_seconds(lambda: torch.sum(data, dim=1)) for _ in range(8)]
    return data.numel() * 4 / min(times)


def matmul_rate() -> float:
    """bf16 operations per second of a product of 8192 x 8192 matrices, the median of several."""
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = [_seconds(lambda: left @ right) for _ in range(12)]
    return 2 * 8192**3 / statistics.median(times[2:])


def _seconds(work: Any) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000
