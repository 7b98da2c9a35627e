"""The cluster tests as a record: requests lost in rollouts and faults, seconds per step, API calls.

    python -m benchmarks.cluster [pytest arguments]

runs the scenarios of tests/cluster on the cluster of KUBECONFIG or on one made here
(tests/cluster/environment.py) and writes benchmarks/results/cluster.json. A run that fails keeps
the old record.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.cluster.environment import ROOT, Scripts, find_kubeconfig, kubectl_path
from tests.cluster.report import VARIABLE

from benchmarks import record

RESULT = record.RESULTS / "cluster.json"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        files = sorted(map(str, (ROOT / "tests" / "cluster").glob("test_*.py")))
        words = ["-m", "pytest", "-m", "cluster", *files, *sys.argv[1:]]
        environment = {**os.environ, VARIABLE: str(report)}
        done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment)
        if done.returncode:
            sys.exit(done.returncode)
        scenarios = json.loads(report.read_text(encoding="utf-8"))
    result = {
        "conditions": {**record.conditions(), **_versions()},
        "requests": {each: _total(scenarios, each) for each in ("sent", "failed", "truncated")},
        "scenarios": scenarios,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {RESULT.relative_to(ROOT)}")


def _total(scenarios: dict[str, dict[str, Any]], count: str) -> int:
    return sum(numbers.get(count, 0) for numbers in scenarios.values())


def _versions() -> dict[str, str]:
    scripts = Scripts.find()
    kubectl = [kubectl_path(scripts), "--kubeconfig", find_kubeconfig(scripts) or ""]
    command = [*kubectl, "version", "-o", "json"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        "kubernetes": json.loads(told)["serverVersion"]["gitVersion"],
        **{name: metadata.version(name) for name in ("kopf", "openai")},
    }


if __name__ == "__main__":
    main()
