"""Images of this source tree, made by the cluster scripts without a container engine.

They hold Debian's Redis, the libraries that Python needs, and Octavo's own code. This Python and
what pip installed for it are mounted into the pods from this machine: torch alone would make every
image a gigabyte, and packages are installed for one patch release of Python.
"""

import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster.environment import ROOT, Images, Scripts

PACKAGES = (
    *("client/octavo", "kernels/octavo_kernels", "operator/octavo_operator"),
    *("protocol/octavo_protocol", "router/octavo_router", "runtime/octavo_runtime"),
)
CODE = "/opt/octavo/code"
PYTHON_MOUNT = "/opt/octavo/python"
SITE_PACKAGES_MOUNT = "/opt/octavo/site-packages"
USER = "65532:65532"
BASE = "octavo-base:test"
# As in the Dockerfile; USER for libraries that ask /etc/passwd otherwise.
ENVIRONMENT = {
    "PYTHONPATH": f"{CODE}:{SITE_PACKAGES_MOUNT}",
    "LD_LIBRARY_PATH": f"{PYTHON_MOUNT}/lib",
    "USER": "octavo",
    "HOME": "/tmp",
    "OCTAVO_CACHE": "/cache",
    "HF_HOME": "/cache/huggingface",
    "NUMBA_CACHE_DIR": "/tmp/numba",
    "TRITON_CACHE_DIR": "/tmp/triton",
    "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "OCTAVO_HOST": "0.0.0.0",
}


def build(scripts: Scripts) -> Images:
    """Makes all images and loads them into the nodes. Unchanged code makes equal images."""
    if f"/{BASE} " not in scripts.run("image", "--list"):
        scripts.run("image", BASE, "--debian", "ca-certificates,python3,redis-server")
    environment = [part for pair in ENVIRONMENT.items() for part in ("--env", "=".join(pair))]
    names = {part: f"octavo-{part}:test" for part in ("runtime", "router", "operator")}
    with _code() as folder:
        for name in names.values():
            words = ["--from", BASE, "--add", f"{folder}:{CODE}", *environment, "--user", USER]
            scripts.run(
                "image", name, *words, "--entrypoint", f"{PYTHON_MOUNT}/bin/python3 -m octavo"
            )
    redis = "octavo-redis:test"
    scripts.run("image", redis, "--from", BASE, "--user", USER, "--entrypoint", "redis-server")
    return Images(**names, redis=redis)


@contextmanager
def _code() -> Iterator[Path]:
    """A folder with the packages alone, as an image needs them."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        for package in PACKAGES:
            source = ROOT / package
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / source.name, ignore=ignored)
        yield folder


def host_path(name: str, source: Path, target: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(volume, mount) of a folder of this machine, read-only."""
    volume = {"name": name, "hostPath": {"path": str(source), "type": "Directory"}}
    return volume, {"name": name, "mountPath": target, "readOnly": True}


def python_mounts() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(volume, mount) of this Python, and of what pip installed for it."""
    return [
        host_path("python", Path(sys.base_prefix), PYTHON_MOUNT),
        host_path("site-packages", Path(sysconfig.get_path("purelib")), SITE_PACKAGES_MOUNT),
    ]


def model_mount(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(volume, mount) that puts a model of this machine's cache into the pods' cache."""
    return host_path("smollm2", folder, f"{ENVIRONMENT['OCTAVO_CACHE']}/models/{folder.name}")
