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
        (512, [32, 64, 128, 256, 384, 512]),
    ],
)
def test_the_ladder_of_mixed_steps_ends_at_the_largest_step(
    max_num_tokens: int, sizes: list[int]
) -> None:
    assert mixed_graph_sizes(max_num_tokens) == sizes


def test_steps_of_more_than_2048_tokens_have_no_graph() -> None:
    assert mixed_graph_sizes(8192) == mixed_graph_sizes(2048)
    assert mixed_graph_sizes(8192)[-1] == 2048
