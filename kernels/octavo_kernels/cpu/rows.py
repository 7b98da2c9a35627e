"""How many rows of an elementwise kernel one task takes."""

from __future__ import annotations

# Waking a second thread costs about as much as this many elements.
_ELEMENTS = 8192


def rows_per_task(num_rows: int, row_elements: int) -> tuple[int, int]:
    """Rows of a task and the number of tasks."""
    rows = max(1, _ELEMENTS // row_elements)
    return rows, -(-num_rows // rows)
