"""The examples' manifests are valid."""

from pathlib import Path

import pytest

from octavo_protocol.model_deployment import load_manifest

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_manifest_is_valid(path: Path) -> None:
    deployment = load_manifest(path)

    assert deployment.spec.served_names


def test_examples_are_numbered_without_gaps() -> None:
    numbers = [int(path.name.split("-")[0]) for path in sorted(EXAMPLES.iterdir())]

    assert numbers == list(range(1, len(numbers) + 1))
