"""Measurements that tests take along the way, for benchmarks/results/cluster.json."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Names the file; nothing is written without it.
VARIABLE = "OCTAVO_CLUSTER_REPORT"


@dataclass
class Report:
    """Seconds of named steps and other numbers, by scenario."""

    scenarios: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, scenario: str, **numbers: Any) -> None:
        self.scenarios.setdefault(scenario, {}).update(numbers)

    @contextmanager
    def step(self, scenario: str, step: str) -> Iterator[None]:
        """Adds the seconds that the block took."""
        begun = time.monotonic()
        yield
        seconds = self.scenarios.setdefault(scenario, {}).setdefault("seconds", {})
        seconds[step] = round(time.monotonic() - begun, 1)

    def write(self) -> None:
        if path := os.environ.get(VARIABLE):
            Path(path).write_text(json.dumps(self.scenarios, indent=1), encoding="utf-8")
