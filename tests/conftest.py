"""Fixtures that several parts share."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

# Triton reads this when it is imported, which others do too (transformers, for one): first of all.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Workers beside each other (`make test`) take one core each: teams of threads that share a core
# wait for each other's turns. Children inherit it; tests of threads set their own number.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# The same examples in every run, however slow the machine: a failure is never luck. Look further
# with `--hypothesis-profile=default`.
hypothesis.settings.register_profile(
    "octavo",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("octavo")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct; made from a package on first use (`make model`)."""
    from octavo_runtime.models.source import resolve_model

    return resolve_model("smollm2")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2, a sentence embedder."""
    from octavo_runtime.models.source import resolve_model

    return resolve_model("minilm")


@pytest.fixture(scope="session")
def ms_marco() -> Path:
    """Folder of ms-marco-MiniLM-L-12-v2, a cross-encoder."""
    from octavo_runtime.models.source import resolve_model

    return resolve_model("ms-marco-minilm")
