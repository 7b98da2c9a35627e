"""The way of a new user: chart, a manifest of five lines, an answer."""

import pytest

from tests.cluster.installation import Installation
from tests.cluster.kube import conditions
from tests.cluster.model_deployments import SOURCE, ModelDeployments
from tests.cluster.report import Report

pytestmark = [pytest.mark.cluster, pytest.mark.model, pytest.mark.timeout(900)]

MANIFEST = """
apiVersion: octavo.dev/v1alpha1
kind: ModelDeployment
metadata: {name: smollm2}
spec: {model: {source: SOURCE}, resources: {gpu: {count: 0}}}
"""


def test_five_lines_become_a_model_that_answers_the_openai_client(
    octavo: Installation, models: ModelDeployments, report: Report
) -> None:
    manifest = MANIFEST.replace("SOURCE", SOURCE)
    with report.step("from nothing", "manifest to ready"):
        octavo.kube.kubectl("apply", "-n", models.namespace, "-f", "-", stdin=manifest)
        found = models.wait_until_ready("smollm2")
    with report.step("from nothing", "first answer"), models.openai() as client:
        answer = client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            temperature=0,
        )
        assert [each.id for each in client.models.list()] == ["smollm2"]
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert found["status"]["endpoint"].startswith("http://octavo-router.")
    assert found["status"]["capacity"]["tokens"] > 0
    true = {name for name, each in conditions(found).items() if each["status"] == "True"}
    assert true == {"Ready", "Valid", "Registered"}
