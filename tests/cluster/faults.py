"""Faults of the machines below the cluster, where the scripts run it on this one.

Each component of a cluster that the scripts started descends from a process whose id is in a file.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_RUN = Path(os.environ.get("KFD_RUN", "/run/kube-from-debian"))


def _component(box: str, name: str) -> psutil.Process:
    """The process `name` of the control plane (`cp`) or of a node."""
    root = psutil.Process(int((_RUN / f"{box}.pid").read_text()))
    found = [each for each in root.children(recursive=True) if each.name() == name[:15]]
    assert found, f"{name} does not run in {box}"
    return found[0]


def kill_api_server() -> None:
    """SIGKILL; it is started again after a second."""
    _component("cp", "kube-apiserver").kill()


@contextmanager
def stopped_kubelet(node: str) -> Iterator[None]:
    """While it lasts, the node's kubelet is halted; its pods run on."""
    kubelet = _component(node, "kubelet")
    kubelet.suspend()
    try:
        yield
    finally:
        kubelet.resume()
