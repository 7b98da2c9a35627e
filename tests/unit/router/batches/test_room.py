"""How many lines may be under way for a model."""

from pathlib import Path

import pytest
from tests.fakes.fake_presence import new_record

from octavo_protocol.keys import Keys
from octavo_protocol.records import encode
from octavo_router.batches.options import BatchOptions
from octavo_router.batches.service import BatchService
from octavo_router.deployments import Deployments
from octavo_router.prefix_index import IndexBudget


@pytest.fixture
def deployments() -> Deployments:
    return Deployments(budget=IndexBudget())


@pytest.fixture
def service(deployments: Deployments, tmp_path: Path) -> BatchService:
    options = BatchOptions(
        files_url=str(tmp_path),
        has_worker=True,
        max_file_bytes=1,
        max_lines=1,
        max_line_bytes=1,
    )
    return BatchService(
        options, redis_url="redis://127.0.0.1:1", deployments=deployments, tenants=None
    )


def test_there_is_none_while_no_model_is_known(
    service: BatchService, deployments: Deployments
) -> None:
    """A router that starts before all replicas, or before Redis tells of any."""
    assert service.room("chat", 0) == 0
    deployments.add(Keys("n", "d"))
    assert service.room("chat", 0) == 0


def test_lines_have_the_places_that_other_requests_leave(
    service: BatchService, deployments: Deployments
) -> None:
    deployment = deployments.add(Keys("n", "d"))
    record = new_record(
        "r", model="chat", max_num_seqs=8, running=6, background_running=4, served_names=["chat"]
    )
    deployments.take_replicas(deployment, {"r": encode(record)})
    assert service.room("chat", 4) == 6  # two are others'
    assert service.room("chat", 0) == 2  # another router's lines have four
    for _ in range(3):
        deployment.loads.sent(record.incarnation, 10)
    assert service.room("chat", 4) == 5
    assert service.room("", 4) == 5


def test_lines_of_a_model_that_is_not_there_go_on_to_hear_it(
    service: BatchService, deployments: Deployments
) -> None:
    deployment = deployments.add(Keys("n", "d"))
    deployments.take_replicas(deployment, {"r": encode(new_record("r", served_names=["chat"]))})
    assert service.room("other", 0) > 0
