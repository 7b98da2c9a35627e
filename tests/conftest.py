"""Fixtures that several parts share."""

from pathlib import Path

import hypothesis
import pytest

# The same examples in every run: a failure is never luck. Look further with
# `--hypothesis-profile=default`.
hypothesis.settings.register_profile("octavo", derandomize=True, deadline=None)
hypothesis.settings.load_profile("octavo")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct; made from a package on first use (`make model`)."""
    from octavo_runtime.models.source import resolve_model

    return resolve_model("smollm2")
