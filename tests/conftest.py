"""Fixtures that several parts share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct; made from a package on first use (`make model`)."""
    from octavo_runtime.models.source import resolve_model

    return resolve_model("smollm2")
