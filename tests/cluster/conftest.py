"""A cluster, images and one installation of the chart for all tests; a clean namespace for each."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import images
from tests.cluster.environment import Images, Scripts, find_kubeconfig, kubectl_path
from tests.cluster.installation import (
    NAMESPACE,
    OTHER_NAMESPACE,
    Installation,
    installed,
    values_for,
)
from tests.cluster.kube import Kube
from tests.cluster.model_deployments import ModelDeployments
from tests.cluster.report import Report


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    made = Report()
    yield made
    made.write()


@pytest.fixture(scope="session")
def scripts() -> Scripts | None:
    """What makes a cluster on this machine, if it is there."""
    return Scripts.find()


@pytest.fixture(scope="session")
def kube(scripts: Scripts | None) -> Kube:
    """The cluster that KUBECONFIG names, or one that the scripts start."""
    kubeconfig = find_kubeconfig(scripts)
    if kubeconfig is None:
        pytest.skip("no cluster: set KUBECONFIG, or OCTAVO_CLUSTER_SCRIPTS to make one")
    return Kube.connect(kubeconfig, kubectl_path(scripts))


@pytest.fixture(scope="session")
def values(scripts: Scripts | None, smollm2: Path, report: Report) -> dict[str, Any]:
    """The chart's values, with images that are in the cluster."""
    named, made = Images.from_environment(os.environ), None
    if named is None:
        if scripts is None:
            pytest.skip("no images: set OCTAVO_TEST_RUNTIME_IMAGE and its like, see environment.py")
        with report.step("from nothing", "images"):
            named = made = images.build(scripts)
    return values_for(made, named, smollm2)


@pytest.fixture(scope="session")
def octavo(kube: Kube, values: dict[str, Any], report: Report) -> Iterator[Installation]:
    """The chart, installed as users install it, in the namespaces of these tests."""
    with ExitStack() as stack:
        with report.step("from nothing", "chart installed and ready"):
            installation = stack.enter_context(installed(kube, values))
        yield installation


@pytest.fixture(scope="session")
def other_runtime_image(octavo: Installation, scripts: Scripts | None) -> str:
    """The runtime's image by another name."""
    if name := os.environ.get("OCTAVO_TEST_OTHER_RUNTIME_IMAGE"):
        return name
    if scripts is None:
        pytest.skip("set OCTAVO_TEST_OTHER_RUNTIME_IMAGE to an image equal to the runtime's")
    scripts.run("image", "octavo-runtime:other", "--from", "octavo-runtime:test")
    return "octavo-runtime:other"


@pytest.fixture
def models(octavo: Installation) -> Iterator[ModelDeployments]:
    """ModelDeployments of one test; when it ends they are deleted, and so must be all they had."""
    made = ModelDeployments(octavo.kube, NAMESPACE, octavo.router_url)
    yield made
    made.delete_all()


@pytest.fixture
def other_models(octavo: Installation) -> Iterator[ModelDeployments]:
    """The same in another namespace."""
    made = ModelDeployments(octavo.kube, OTHER_NAMESPACE, octavo.router_url)
    yield made
    made.delete_all()
