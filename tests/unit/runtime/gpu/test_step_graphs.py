"""The ladders of sizes that get a CUDA graph."""

import pytest

from octavo_runtime.worker.gpu.step_graphs import StepGraphs, graph_sizes, mixed_graph_sizes


@pytest.mark.parametrize(
    ("max_num_seqs", "sizes"),
    [
        (1, [1]),
        (3, [1, 2, 3]),
        (20, [1, 2, 4, 8, 16, 20]),
        (256, [1, 2, 4, *range(8, 257, 8)]),
        (300, [1, 2, 4, *range(8, 257, 8), 272, 288, 300]),
    ],
)
def test_the_ladder_ends_at_the_largest_batch(max_num_seqs: int, sizes: list[int]) -> None:
    assert graph_sizes(max_num_seqs) == sizes


def test_without_a_capture_no_batch_has_a_graph() -> None:
    assert StepGraphs([1, 2, 4]).size_for(1) is None


@pytest.mark.parametrize(
    ("max_num_tokens", "sizes"),
    [
        (16, [16]),
        (300, [32, 64, 128, 256, 300]),
        (8192, [32, 64, *range(128, 1025, 128), 1280, 1536, 1792, 2048]),
    ],
)
def test_mixed_steps_have_graphs_as_long_as_launches_would_be_seen(
    max_num_tokens: int, sizes: list[int]
) -> None:
    assert mixed_graph_sizes(max_num_tokens) == sizes
