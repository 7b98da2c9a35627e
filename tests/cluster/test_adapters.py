"""Adapters come, change, break and go under load, and their neighbours do not notice."""

import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.cluster.environment import Scripts
from tests.cluster.kube import LORA_ADAPTER, Object, conditions
from tests.cluster.model_deployments import ModelDeployments
from tests.cluster.report import Report
from tests.cluster.streaming_load import streaming_load
from tests.fakes.lora_adapters import write_adapter
from tests.fakes.trained_adapters import QUESTIONS, RECIPES, trained_adapters

pytestmark = [pytest.mark.cluster, pytest.mark.model, pytest.mark.timeout(600)]

NAME = "adapted"
REPLICAS = 2
# The model is mounted into the replicas' cache, whose folders the scripts' nodes make as root.
ROOT_USER: Object = {"runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": False}
SCENARIO = "adapters applied, used, updated, broken, removed"


@dataclass(frozen=True)
class Archives:
    """Adapters of SmolLM2 as archives on a web server that pods reach: two trained ones, others
    random. url: of the server.
    """

    url: str

    def source(self, name: str) -> Object:
        return {"source": f"{self.url}/{name}.tar"}


@pytest.fixture
def archives(scripts: Scripts | None, smollm2: Path, tmp_path: Path) -> Iterator[Archives]:
    if scripts is None:
        pytest.skip("pods fetch the adapters from this machine, which only the scripts' reach")
    for name, folder in trained_adapters(smollm2).items():
        _pack(shutil.copytree(folder, tmp_path / name))
    _pack(write_adapter(tmp_path / "neighbour", smollm2, seed=1, rank=8, scale=4.0))
    _pack(write_adapter(tmp_path / "too-large", smollm2, seed=9, rank=32))
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer((scripts.machine_address, 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield Archives(f"http://{scripts.machine_address}:{server.server_port}")
        server.shutdown()
        serving.join()


@dataclass(frozen=True)
class Adapters:
    """LoraAdapters of one deployment."""

    models: ModelDeployments

    def apply(self, name: str, model: Object, policy: str = "EveryReplica") -> None:
        namespace = self.models.namespace
        self.models.kube.apply(
            {
                "apiVersion": "octavo.dev/v1alpha1",
                "kind": "LoraAdapter",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"target": {"name": NAME}, "model": model, "loadPolicy": policy},
            }
        )

    def wait(self, name: str, what: str, look: Callable[[Object], Any]) -> Object:
        """Its status, once that is of the spec that is there and `look` is true of it."""

        def looked() -> Object | None:
            found = self.models.kube.get(LORA_ADAPTER, name, self.models.namespace)
            assert found is not None
            status: Object = found.get("status") or {}
            is_current = status.get("observedGeneration") == found["metadata"]["generation"]
            return found if is_current and look(found) else None

        found = self.models.kube.wait(
            f"{name}: {what}", looked, seconds=150, namespace=self.models.namespace
        )
        status: Object = found["status"]
        return status

    def wait_until_updated(self, name: str) -> Object:
        def is_updated(found: Object) -> bool:
            is_ready = conditions(found)["Ready"]["status"] == "True"
            return bool(is_ready and found["status"]["updatedReplicas"] == REPLICAS)

        return self.wait(name, "updated everywhere", is_updated)

    def wait_until_failed(self, name: str) -> Object:
        def has_failed(found: Object) -> bool:
            return bool(conditions(found)["Ready"]["reason"] == "LoadFailed")

        return self.wait(name, "LoadFailed", has_failed)

    def answer(self, model: str) -> str:
        with self.models.openai() as client:
            answer = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": QUESTIONS[0]}],
                max_tokens=24,
                temperature=0,
            )
        assert answer.model == model
        return answer.choices[0].message.content or ""


def test_adapters_come_change_break_and_go_and_no_neighbour_fails(
    models: ModelDeployments, archives: Archives, report: Report
) -> None:
    models.apply(
        NAME,
        replicas=REPLICAS,
        lora={"maxLoras": 2, "maxLoraRank": 8, "maxCpuLoras": 8},
        podTemplate={"securityContext": ROOT_USER},
    )
    models.wait_until_ready(NAME, replicas=REPLICAS)
    adapters = Adapters(models)
    adapters.apply("neighbour", archives.source("neighbour"), "OnDemand")
    _until_known(models, "neighbour")
    with report.step(SCENARIO, "first request of an adapter on demand"):
        answers = {"neighbour": adapters.answer("neighbour"), NAME: adapters.answer(NAME)}

    url = models.router_url
    with (
        streaming_load(url, NAME, threads=1) as base,
        streaming_load(url, "neighbour", threads=1) as neighbour,
    ):
        with report.step(SCENARIO, "applied to loaded everywhere"):
            adapters.apply("changing", archives.source("shouting"))
            status = adapters.wait_until_updated("changing")
        [first] = {each["version"] for each in status["replicas"]}
        answers["first"] = adapters.answer("changing")
        assert RECIPES["shouting"].is_in_form(answers["first"])

        with streaming_load(url, "changing", threads=1) as changing:
            with report.step(SCENARIO, "another source to replaced everywhere"):
                adapters.apply("changing", archives.source("json"))
                status = adapters.wait_until_updated("changing")
            [second] = {each["version"] for each in status["replicas"]}
            assert second != first
            answers["second"] = adapters.answer("changing")
            assert RECIPES["json"].is_in_form(answers["second"])

            adapters.apply("changing", archives.source("too-large"))
            status = adapters.wait_until_failed("changing")
            assert (status["loadedReplicas"], status["updatedReplicas"]) == (REPLICAS, 0)
            assert "rank" in conditions({"status": status})["Ready"]["message"]
            assert adapters.answer("changing") == answers["second"]

        adapters.apply("broken", archives.source("too-large"), "OnDemand")
        _until_known(models, "broken")
        for _ in range(3):
            with pytest.raises(openai.InternalServerError, match="rank") as refused:
                adapters.answer("broken")
            assert refused.value.code == "adapter_not_loaded"
        adapters.wait_until_failed("broken")

        for name in ("changing", "broken"):
            models.kube.delete(LORA_ADAPTER, name, models.namespace)
            _until_unknown(models, name)
        assert adapters.answer("neighbour") == answers["neighbour"]
    loads = {"base": base, "neighbour": neighbour, "changing": changing}
    report.add(SCENARIO, **{name: load.report() for name, load in loads.items()})

    for load in loads.values():
        load.assert_nothing_lost(at_least=1)
    assert len(set(answers.values())) == len(answers), answers


def _pack(folder: Path) -> None:
    """Beside the folder, with its name."""
    with tarfile.open(folder.with_suffix(".tar"), "w") as archive:
        archive.add(folder, arcname=folder.name)
    shutil.rmtree(folder)


def _names(models: ModelDeployments) -> set[str]:
    listed = httpx.get(f"{models.router_url}/v1/models", timeout=30).json()["data"]
    return {each["id"] for each in listed}


def _until_known(models: ModelDeployments, name: str) -> None:
    """To every router: new connections lead to any of them."""
    models.kube.wait(
        f"{name} known", lambda: all(name in _names(models) for _ in range(10)), seconds=30
    )


def _until_unknown(models: ModelDeployments, name: str) -> None:
    models.kube.wait(
        f"{name} unknown",
        lambda: all(name not in _names(models) for _ in range(10)),
        seconds=30,
    )
    with models.openai() as client, pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model=name, prompt="x", max_tokens=1)
    assert missing.value.code == "model_not_found"
