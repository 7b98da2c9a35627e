"""The weights file: what it sets, and what its errors teach."""

from pathlib import Path

import pytest

from octavo_protocol.errors import ConfigError
from octavo_router.policies.weights import PolicyWeights, read_weights


def write(folder: Path, text: str) -> Path:
    path = folder / "weights.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_is_given_is_set_and_the_rest_keeps_its_default(tmp_path: Path) -> None:
    weights = read_weights(write(tmp_path, "uncached: 2\ntie_ms: 0.5\n"))
    assert weights == PolicyWeights(uncached=2.0, recent=0.05, running=1.0, tie_ms=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "uncache: 4",
            "there is no weight 'uncache'; there are uncached, recent, running, adapter, tie_ms",
        ),
        ("uncached: four", "uncached must be a number from 0, such as 4, not 'four'"),
        ("recent: -1", "recent must be a number from 0, such as 0.05, not -1"),
        ("recent: .inf", "recent must be a number from 0, such as 0.05, not inf"),
        ("recent: .nan", "recent must be a number from 0, such as 0.05, not nan"),
        ("running: yes", "running must be a number from 0, such as 1, not True"),
        (
            "- 4",
            "write one `name: number` a line; names are uncached, recent, running, adapter, tie_ms",
        ),
        (
            "",
            "write one `name: number` a line; names are uncached, recent, running, adapter, tie_ms",
        ),
        ("uncached: [", "are not valid YAML"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_write(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        read_weights(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the policy weights .*none\.yaml"):
        read_weights(tmp_path / "none.yaml")
