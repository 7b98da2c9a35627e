"""Full garbage collections walk over what requests have made, not over torch."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.runtime.test_engine_sampling import PROMPT, engine, folder

from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.engine.heap import FrozenHeap

__all__ = ["folder"]
PARAMS = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """Whatever another test has left."""
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_a_held_heap_is_not_walked_until_it_is_released() -> None:
    heap = FrozenHeap()
    heap.release()
    num_objects = len(gc.get_objects())
    for _ in range(2):
        heap.hold()
        assert gc.get_freeze_count() >= num_objects
        assert len(gc.get_objects()) < num_objects / 10
    for _ in range(2):
        heap.release()
        assert gc.get_freeze_count() == 0


def test_the_heap_is_held_while_requests_run_and_the_callers_between_them(folder: Path) -> None:
    llm = engine(folder)
    for _ in range(2):
        assert gc.get_freeze_count() == 0
        llm.add_request("a", PROMPT, PARAMS)
        llm.step()
        assert gc.get_freeze_count() > 10_000
        while llm.has_unfinished_requests():
            llm.step()
    assert gc.get_freeze_count() == 0


def test_an_engine_that_is_shut_down_releases_the_heap(folder: Path) -> None:
    llm = engine(folder)
    llm.add_request("a", PROMPT, PARAMS)
    llm.step()
    llm.shutdown()
    assert gc.get_freeze_count() == 0
