"""Fixtures that several parts share."""

import os
import subprocess
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


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(certificate, key) of `localhost`, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"),
            *("ec_paramgen_curve:prime256v1", "-nodes", "-days", "1", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-out", str(paths[0]), "-keyout", str(paths[1])),
        ],
        check=True,
        capture_output=True,
    )
    return paths
