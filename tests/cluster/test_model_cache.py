"""A model that is downloaded once, into a claim, before replicas are made."""

import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.cluster.environment import Scripts
from tests.cluster.kube import Object, conditions, is_true
from tests.cluster.model_deployments import OWNER_LABEL, SOURCE, ModelDeployments

pytestmark = [pytest.mark.cluster, pytest.mark.model, pytest.mark.timeout(600)]


@pytest.fixture
def source(scripts: Scripts | None, smollm2: Path, tmp_path: Path) -> Iterator[str]:
    """SmolLM2 where a Job can fetch it: the scripts' pods reach nothing but this machine."""
    if scripts is None:
        yield SOURCE
        return
    with tarfile.open(tmp_path / "smollm2.tar", "w") as archive:
        archive.add(smollm2, arcname="smollm2")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer((scripts.machine_address, 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"http://{scripts.machine_address}:{server.server_port}/smollm2.tar"
        server.shutdown()
        serving.join()


def test_replicas_serve_from_a_claim_that_a_job_has_filled_before(
    models: ModelDeployments, scripts: Scripts | None, source: str
) -> None:
    models.apply(
        "cached",
        model={"source": source},
        cache={"claim": {"size": "1Gi"}},
        podTemplate={"securityContext": _user(scripts)},
    )
    condition = models.wait_for_condition("cached", "ModelCached", "True", seconds=120)
    assert condition["reason"] == "Downloaded"
    found = models.wait_until_ready("cached")
    assert is_true(found, "ModelCached")

    (job,) = models.kube.list("batch/v1/Job", models.namespace, **{OWNER_LABEL: "cached"})
    assert job["status"]["succeeded"] == 1
    (pod,) = (pod for pod in models.pods("cached") if _is_replica(pod))
    assert pod["metadata"]["creationTimestamp"] >= job["status"]["completionTime"]
    (mount,) = (
        each
        for each in pod["spec"]["containers"][0]["volumeMounts"]
        if each["mountPath"] == "/models"
    )
    assert mount["readOnly"] is True
    assert pod["spec"]["containers"][0]["args"][1].startswith("/models/")


def test_a_model_that_cannot_be_fetched_makes_no_replica_and_says_why(
    models: ModelDeployments, scripts: Scripts | None
) -> None:
    models.apply(
        "unfetched",
        model={"source": "https://models.invalid/model.tar"},
        cache={"claim": {"size": "1Gi"}},
        podTemplate={"securityContext": _user(scripts)},
    )
    condition = models.wait_for_condition(
        "unfetched", "ModelCached", "False", "DownloadFailing", "DownloadFailed", seconds=120
    )
    assert "models.invalid" in condition["message"]
    found = models.get("unfetched")
    assert conditions(found)["Ready"]["reason"] == "WaitingForModel"
    assert not [pod for pod in models.pods("unfetched") if _is_replica(pod)]


def _is_replica(pod: Object) -> bool:
    return bool(pod["metadata"]["labels"]["app.kubernetes.io/component"] == "replica")


def _user(scripts: Scripts | None) -> Object:
    """The scripts' volumes are folders of root, and fsGroup does not change that."""
    return {} if scripts is None else {"runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": False}
