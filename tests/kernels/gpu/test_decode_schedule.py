"""Every tile of keys has one worker, and all workers but the last have as many."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BLOCK_N = 16


def expected_work(
    contexts: list[int], num_kv_heads: int, num_workers: int, min_tiles: int, window: int
) -> list[list[int]]:
    """By listing all tiles."""
    tiles = []
    for sequence, context in enumerate(contexts):
        first_tile = max(context - window, 0) // BLOCK_N if window else 0
        num_tiles = max(-(-context // BLOCK_N) - first_tile, 1)
        for head in range(num_kv_heads):
            tiles += [[sequence, head, tile] for tile in range(num_tiles)]
    count = max(-(-len(tiles) // num_workers), min_tiles)
    shares = [tiles[worker * count : (worker + 1) * count] for worker in range(num_workers)]
    firsts: dict[tuple[int, int], int] = {}
    records = []
    for worker, share in enumerate(shares):
        for sequence, head, _ in share:
            firsts.setdefault((sequence, head), worker)
        if share:
            pair = (share[0][0], share[0][1])
            others = [other for other in shares if any((s, h) == pair for s, h, _ in other)]
            is_second = firsts[pair] == worker - 1
            records.append([*share[0], len(share), len(others) if is_second else 0])
    return records


def check(
    device: str, contexts: list[int], num_kv_heads: int, num_workers: int, window: int = 0
) -> None:
    from octavo_kernels.gpu.decode_schedule import decode_schedule

    schedule = decode_schedule(
        torch.tensor([*contexts, 70, 900], dtype=torch.int32, device=device),
        torch.tensor([len(contexts)], dtype=torch.int32, device=device),
        num_kv_heads=num_kv_heads,
        num_workers=num_workers,
        block_n=BLOCK_N,
        min_tiles=2,
        sliding_window=window,
    ).tolist()
    expected = expected_work(contexts, num_kv_heads, num_workers, 2, window)
    assert schedule[: len(expected)] == expected
    idle = schedule[len(expected) :]
    assert len(schedule) == num_workers
    assert idle == [[len(contexts), 0, 0, 0, 0]] * len(idle)


@pytest.mark.parametrize(
    "contexts",
    [[1], [500], [0, 0, 33, 0], [17, 1, 4000, 90], [64] * 300],
    ids=["a-token", "long", "padded", "ragged", "more-than-lanes"],
)
@pytest.mark.parametrize("num_kv_heads", [1, 3])
def test_workers_share_the_tiles(device: str, contexts: list[int], num_kv_heads: int) -> None:
    check(device, contexts, num_kv_heads, num_workers=5)


@pytest.mark.parametrize("window", [1, 16, 100])
def test_keys_before_the_window_are_nobodys(device: str, window: int) -> None:
    check(device, [300, 16, 17, 90], 2, num_workers=4, window=window)


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    contexts=st.lists(st.integers(0, 900), min_size=1, max_size=40),
    num_kv_heads=st.integers(1, 8),
    num_workers=st.integers(1, 9),
)
def test_any_batch(device: str, contexts: list[int], num_kv_heads: int, num_workers: int) -> None:
    check(device, contexts, num_kv_heads, num_workers)
