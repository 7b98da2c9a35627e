"""BatchJobs on a cluster: pods that are killed, specs that are refused, and a deletion."""

from collections.abc import Iterator

import openai
import pytest
from kubernetes.dynamic.exceptions import DynamicApiError

from tests.cluster.batch_jobs import BatchJobs, batch_router
from tests.cluster.environment import Scripts
from tests.cluster.installation import NAMESPACE, Installation
from tests.cluster.kube import BATCH_JOB, Object, conditions
from tests.cluster.model_deployments import NOWHERE, ModelDeployments

pytestmark = [pytest.mark.cluster, pytest.mark.model, pytest.mark.timeout(600)]

NUM_LINES = 20


@pytest.fixture(scope="module")
def router_url(octavo: Installation) -> Iterator[str]:
    with batch_router(octavo) as url:
        yield url


@pytest.fixture
def jobs(octavo: Installation, scripts: Scripts | None) -> Iterator[BatchJobs]:
    """Those of one test, with an input of NUM_LINES requests."""
    # The scripts' volumes are folders of root, and fsGroup does not change that.
    user = {} if scripts is None else {"runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": False}
    image = octavo.values["router"]["image"]
    made = BatchJobs(octavo.kube, NAMESPACE, user, f"{image['repository']}:{image['tag']}")
    made.prepare([_line(i) for i in range(NUM_LINES)])
    yield made
    for found in octavo.kube.list(BATCH_JOB, NAMESPACE):
        made.delete(found["metadata"]["name"])


def is_under_way(status: Object) -> bool:
    """The platform has made the batch."""
    return status.get("phase") == "Running" and "batchId" in status


def _line(i: int) -> Object:
    messages = [{"role": "user", "content": f"Tell a story about the number {i}."}]
    body = {"messages": messages, "max_tokens": 32, "temperature": 0}
    url = "/v1/chat/completions"
    return {"custom_id": f"line-{i}", "method": "POST", "url": url, "body": body}


def test_a_pod_that_is_killed_in_the_middle_costs_no_line_and_repeats_none(
    models: ModelDeployments, jobs: BatchJobs, router_url: str
) -> None:
    models.apply("smollm2")
    models.wait_until_ready("smollm2")
    made = jobs.apply("stories", target={"name": "smollm2"})
    running = jobs.wait("stories", "running", is_under_way)
    [pod] = jobs.pods("stories")
    killed = pod["metadata"]["name"]
    jobs.kube.delete("v1/Pod", killed, NAMESPACE, gracePeriodSeconds=0)

    status = jobs.wait("stories", "complete", lambda s: s.get("phase") == "Complete", seconds=400)
    assert status["batchId"] == running["batchId"]
    assert status["counts"] == {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}
    assert (status["progressPercent"], status["outputUrl"]) == (
        100,
        made["spec"]["output"]["url"],
    )
    assert status["startedAt"] <= status["completedAt"]
    [ended] = jobs.pods("stories")
    assert ended["metadata"]["name"] != killed, "another pod has ended what the first one began"
    lines = jobs.results("stories")
    assert [line["custom_id"] for line in lines] == [f"line-{i}" for i in range(NUM_LINES)]
    assert all(line["response"]["status_code"] == 200 for line in lines)
    with openai.OpenAI(base_url=f"{router_url}/v1", api_key="none") as client:
        keys = [(each.metadata or {}).get("octavo.dev/key") for each in client.batches.list()]
    assert keys.count(made["metadata"]["uid"]) == 1


def test_an_invalid_spec_and_a_change_of_what_is_asked_are_refused(jobs: BatchJobs) -> None:
    with pytest.raises(DynamicApiError, match="write s3://bucket/file") as caught:
        jobs.apply("refused", output={"url": "https://example.com/answers.jsonl"})
    assert caught.value.status == 422
    jobs.apply("fixed", model="nobody-serves-it")
    with pytest.raises(DynamicApiError, match="make another BatchJob") as caught:
        jobs.kube.patch(BATCH_JOB, "fixed", NAMESPACE, {"spec": {"model": "other"}})
    assert caught.value.status == 422


def test_deletion_cancels_the_batch_and_takes_the_job_away(
    models: ModelDeployments, jobs: BatchJobs, router_url: str
) -> None:
    models.apply("nowhere", podTemplate=NOWHERE)
    jobs.apply("endless", target={"name": "nowhere"})
    status = jobs.wait("endless", "running", is_under_way)
    found = jobs.kube.get(BATCH_JOB, "endless", NAMESPACE)
    assert found is not None
    assert conditions(found)["Running"]["reason"] == "InProgress"
    jobs.delete("endless")
    with openai.OpenAI(base_url=f"{router_url}/v1", api_key="none") as client:
        jobs.kube.wait(
            "batch cancelled",
            lambda: client.batches.retrieve(status["batchId"]).status == "cancelled",
            seconds=60,
        )
    jobs.kube.wait("pods gone", lambda: not jobs.pods("endless"), seconds=60)
