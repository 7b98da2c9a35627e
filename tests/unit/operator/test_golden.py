"""Examples in, manifests out: the files in `golden/` are what is made of `examples/kubernetes/`.

After a change that is meant, write them again and read the difference:

    OCTAVO_UPDATE_GOLDEN=1 pytest tests/unit/operator/test_golden.py && git diff tests/unit/operator
"""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.fakes.observations import NOW, SETTINGS

from octavo_operator.batch_jobs.decide import decide as decide_batch_job
from octavo_operator.batch_jobs.observed import ObservedBatchJob
from octavo_operator.decide import decide
from octavo_operator.desired import Desired, Manifest
from octavo_operator.observed import Observed

GOLDEN = Path(__file__).parent / "golden"
EXAMPLES = sorted((Path(__file__).parents[3] / "examples" / "kubernetes").glob("*.yaml"))


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def children(example: Path) -> tuple[Manifest, ...]:
    """What is made of the example."""
    documents = list(yaml.safe_load_all(example.read_text(encoding="utf-8")))
    if documents[0]["kind"] != "BatchJob":
        return decided(documents).children or ()
    metadata = {"namespace": "default", "uid": "the-uid", **documents[0]["metadata"]}
    resource = {**documents[0], "metadata": metadata}
    job = decide_batch_job(ObservedBatchJob(now=NOW, resource=resource), SETTINGS).job
    assert job is not None
    return (job,)


def decided(documents: list[Any]) -> Desired:
    """Of a claim, when its download has ended: the whole set of children."""
    metadata = {"namespace": "default", "creationTimestamp": "2026-03-01T11:00:00Z"}
    deployment = {**documents[0], "metadata": {**metadata, **documents[0]["metadata"]}}
    adapters = [{**each, "metadata": {**metadata, **each["metadata"]}} for each in documents[1:]]
    observed = Observed(now=NOW, deployment=deployment, adapters=adapters)
    first = decide(observed, SETTINGS)
    ended = {"conditions": [{"type": "Complete", "status": "True"}]}
    jobs = [{**each, "status": ended} for each in first.children or () if each["kind"] == "Job"]
    return decide(
        Observed(now=NOW, deployment=deployment, adapters=adapters, children=jobs), SETTINGS
    )


def rendered(manifests: tuple[Manifest, ...]) -> str:
    made: str = yaml.dump_all(manifests, Dumper=_Plain, sort_keys=False, width=100)
    return made


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_gives_these_manifests(example: Path) -> None:
    made, golden = rendered(children(example)), GOLDEN / example.name
    if os.environ.get("OCTAVO_UPDATE_GOLDEN"):
        golden.write_text(made, encoding="utf-8")

    assert made == golden.read_text(encoding="utf-8")


def test_every_golden_file_has_its_example() -> None:
    assert [path.name for path in sorted(GOLDEN.glob("*.yaml"))] == [p.name for p in EXAMPLES]
