"""Rows of the device's tables: kept while a sequence runs, given away after."""

import pytest

from octavo_runtime.worker.gpu.row_table import RowTable


def test_a_sequence_keeps_its_row_until_it_is_released() -> None:
    table = RowTable(2)
    first, second = table.row("a"), table.row("b")

    assert table.row("a") == first
    assert {first, second} == {0, 1}
    with pytest.raises(IndexError):
        table.row("c")
    table.release(["a", "unknown"])
    assert table.row("c") == first


def test_only_new_blocks_are_sent() -> None:
    table = RowTable(1)
    row = table.row("a")

    assert table.new_blocks(row, [4, 9]) == (0, [4, 9])
    assert table.new_blocks(row, [4, 9]) == (2, [])
    assert table.new_blocks(row, [4, 9, 2]) == (2, [2])


def test_the_next_owner_of_a_row_sends_all_of_its_blocks() -> None:
    table = RowTable(1)
    table.new_blocks(table.row("a"), [4, 9])
    table.release(["a"])

    assert table.new_blocks(table.row("b"), [7]) == (0, [7])
