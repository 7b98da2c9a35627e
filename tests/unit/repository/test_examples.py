"""The examples' manifests are valid, and the offline ones run."""

import subprocess
import sys
from pathlib import Path

import pytest

from octavo_protocol.resources.model_deployment import load_manifest

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_manifest_is_valid(path: Path) -> None:
    deployment = load_manifest(path)

    assert deployment.spec.served_names


def test_examples_are_numbered_without_gaps() -> None:
    for folder in (EXAMPLES, EXAMPLES / "kubernetes"):
        files = sorted(path for path in folder.iterdir() if path.is_file())
        numbers = [int(path.name.split("-")[0]) for path in files]

        assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("02-offline", "Paris"),
        ("04-structured-outputs", "positive"),
        ("05-beam-search", "The capital of France is Paris"),
        ("06-async-engine", "0: ' Paris'"),
        ("07-logits-processor", "ha ha"),
        ("09-lora", "smollm2: ' Paris"),
    ],
)
def test_offline_example_runs(smollm2: Path, name: str, shown: str) -> None:
    path = EXAMPLES / f"{name}.py"

    run = subprocess.run(
        [sys.executable, "-W", "error", str(path)], capture_output=True, text=True, timeout=240
    )

    assert run.returncode == 0, run.stderr
    assert shown in run.stdout
