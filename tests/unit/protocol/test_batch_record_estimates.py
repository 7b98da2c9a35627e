"""When a batch should end: at its mean speed so far."""

import pytest

from octavo_protocol.batch_record import BatchRecord


def record(**fields: str) -> BatchRecord:
    given = {
        "owner": "me",
        "status": "in_progress",
        "endpoint": "/v1/completions",
        "input_file_id": "file-1",
        "completion_window": "24h",
        "metadata": "null",
        "created_at": "900",
        "expires_at": "90000",
        "in_progress_at": "1000",
        "total": "100",
        **fields,
    }
    return BatchRecord("batch_1", given)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"completed": "9"}, None),
        ({"completed": "20", "failed": "5"}, 1050 + 150),
        ({"completed": "100"}, 1050),
        ({"completed": "50", "status": "finalizing"}, None),
    ],
)
def test_the_rest_takes_as_long_a_line_as_what_is_done(
    fields: dict[str, str], expected: int | None
) -> None:
    assert record(**fields).as_answer(now=1050).estimated_completion_at == expected
