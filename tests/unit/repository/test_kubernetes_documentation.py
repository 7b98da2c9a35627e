"""docs/kubernetes.md explains what the operator can say."""

import re
from pathlib import Path

from octavo_operator.reasons import Reason

PAGE = Path(__file__).parents[3] / "docs" / "kubernetes.md"


def test_every_reason_of_a_condition_is_explained_once() -> None:
    rows = re.findall(r"^\| `([A-Za-z]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(reason.value for reason in Reason)
