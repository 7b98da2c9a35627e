"""Which cluster the tests run on, and with which images: from the environment, or made on the spot.

KUBECONFIG                    the cluster; else the one that the scripts start
OCTAVO_CLUSTER_SCRIPTS        folder with `up` and `image`, which make a cluster and its images on
                              this machine; default ../shared/cluster, if it is there
OCTAVO_TEST_RUNTIME_IMAGE     images in the cluster, made by the Dockerfile; else the scripts make
OCTAVO_TEST_ROUTER_IMAGE      small ones of this source tree, and pods mount the site-packages of
OCTAVO_TEST_OPERATOR_IMAGE    this Python from the machine
OCTAVO_TEST_REDIS_IMAGE       Redis or Valkey
OCTAVO_TEST_OTHER_RUNTIME_IMAGE  the runtime's image by another name, to roll out
OCTAVO_TEST_MODEL             source of SmolLM2 as pods see it; else `smollm2`, which pods fetch, or
                              with the scripts' images find mounted from this machine's cache
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
NODES, GPUS_PER_NODE = 2, 4
# By default the garbage collector deletes a few objects a second, which the crowd would wait for.
FAST_CONTROLLERS = {"KFD_CONTROLLER_FLAGS": "--kube-api-qps=200 --kube-api-burst=400"}


@dataclass(frozen=True, kw_only=True)
class Images:
    runtime: str
    router: str
    operator: str
    redis: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Images | None":
        """None unless all are named."""
        names = {
            part: environment.get(f"OCTAVO_TEST_{part.upper()}_IMAGE", "")
            for part in ("runtime", "router", "operator", "redis")
        }
        return cls(**names) if all(names.values()) else None


@dataclass(frozen=True)
class Scripts:
    """The folder of scripts that make a cluster on this machine."""

    folder: Path

    @classmethod
    def find(cls) -> "Scripts | None":
        folder = Path(os.environ.get("OCTAVO_CLUSTER_SCRIPTS", ROOT.parent / "shared" / "cluster"))
        return cls(folder.resolve()) if (folder / "up").is_file() else None

    def up(self) -> Path:
        """Starts the cluster if it is not up; its kubeconfig."""
        words = ["--nodes", str(NODES), "--gpus", str(GPUS_PER_NODE), "--new-crds"]
        return Path(self.run("up", *words).strip())

    def run(self, script: str, *words: str) -> str:
        command = [str(self.folder / script), *words]
        environment = FAST_CONTROLLERS | os.environ
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(f"{script} {' '.join(words)} ended with {done.returncode}")
        return done.stdout

    @property
    def machine_address(self) -> str:
        """Where pods reach this machine."""
        return f"{os.environ.get('KFD_NET', '10.240.0')}.1"

    @cached_property
    def kubectl(self) -> str:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        return str(cache / "kube-from-debian" / "bin" / "kubectl")


def kubectl_path(scripts: Scripts | None) -> str:
    """The user's own kubectl, else the one that belongs to the scripts' cluster."""
    found = shutil.which("kubectl")
    if found or scripts is None:
        return found or "kubectl"
    return scripts.kubectl


def find_kubeconfig(scripts: Scripts | None) -> str | None:
    """Path of the cluster's; starts the scripts' cluster where none is named. None: no cluster."""
    named = os.environ.get("KUBECONFIG")
    return named or (str(scripts.up()) if scripts else None)


if __name__ == "__main__":
    # For `make test-cluster`: the first start of the scripts' cluster takes minutes.
    print(find_kubeconfig(Scripts.find()) or "")
