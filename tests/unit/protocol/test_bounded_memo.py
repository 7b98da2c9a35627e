"""What is computed is kept within its budget, and what was used last stays."""

import secrets
import threading
import tracemalloc

from octavo_protocol.bounded_memo import BoundedMemo


def test_what_was_used_longest_ago_makes_room() -> None:
    memo: BoundedMemo[str] = BoundedMemo(4 * 1400)
    for name in (b"a", b"b", b"c", b"d"):
        memo.put(name, name.decode(), 1000)
    assert memo.get(b"a") == "a"
    memo.put(b"e", "e", 1000)
    assert [memo.get(name) for name in (b"a", b"b", b"c", b"d", b"e")] == ["a", None, "c", "d", "e"]
    assert memo.num_bytes == 4 * 1400


def test_a_value_that_is_put_again_counts_once() -> None:
    memo: BoundedMemo[str] = BoundedMemo(10_000)
    memo.put(b"a", "old", 1000)
    memo.put(b"a", "new", 500)
    assert (memo.get(b"a"), len(memo), memo.num_bytes) == ("new", 1, 900)


def test_a_value_that_would_push_out_much_is_not_kept() -> None:
    memo: BoundedMemo[str] = BoundedMemo(10_000)
    memo.put(b"small", "x", 1000)
    memo.put(b"large", "y", 2200)
    assert (memo.get(b"small"), memo.get(b"large")) == ("x", None)


def test_the_budget_bounds_what_is_really_allocated() -> None:
    """Also for the smallest values, whose entries weigh more than they do."""
    for size in (16, 500, 20_000):
        tracemalloc.start()
        memo: BoundedMemo[bytes] = BoundedMemo(1_000_000)
        for _ in range(2 * 1_000_000 // size if size > 16 else 8000):
            memo.put(secrets.token_bytes(16), bytes(size), size)
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert 0.5 * memo.budget_bytes < taken <= 1.05 * memo.budget_bytes


def test_threads_may_use_it_at_once() -> None:
    memo: BoundedMemo[int] = BoundedMemo(50 * 410)

    def use() -> None:
        for number in range(3000):
            key = number % 100
            memo.put(b"%d" % key, key, 10)
            assert memo.get(b"%d" % (number * 7 % 100)) in (None, number * 7 % 100)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(memo), memo.num_bytes) == (50, 50 * 410)
