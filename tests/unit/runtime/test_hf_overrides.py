"""Overrides of a model's config.json: what they replace, and that cached blocks know of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.tiny_model import write_tiny_model

from octavo_protocol.errors import ConfigError
from octavo_runtime.model_config import ModelConfig, RopeConfig, cache_identity

YARN = {"rope_type": "yarn", "factor": 2.0}


def rope(folder: Path, overrides: dict[str, Any]) -> RopeConfig:
    return ModelConfig.from_folder(folder, overrides).rope


@pytest.fixture(params=["old keys", "rope_parameters"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Checkpoints say how they rotate under either name."""
    folder = write_tiny_model(tmp_path / "tiny")
    path = folder / "config.json"
    more: dict[str, Any] = {"rope_theta": 5000.0}
    if request.param == "rope_parameters":
        more = {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    return folder


def test_overrides_replace_what_the_file_says(folder: Path) -> None:
    config = ModelConfig.from_folder(folder, {"num_hidden_layers": 1, "rms_norm_eps": 0.5})

    assert (config.num_layers, config.norm_eps, config.hidden_size) == (1, 0.5, 64)
    assert ModelConfig.from_folder(folder).num_layers == 2


def test_rotary_overrides_hold_under_either_name_of_the_file(folder: Path) -> None:
    plain = RopeConfig(5000.0, {"rope_type": "default"})

    assert rope(folder, {}) == plain
    assert rope(folder, {"rope_theta": 10.0}) == RopeConfig(10.0, plain.scaling)
    assert rope(folder, {"rope_scaling": YARN}) == RopeConfig(5000.0, YARN)
    assert rope(folder, {"rope_scaling": YARN, "rope_theta": 10.0}) == RopeConfig(10.0, YARN)
    assert rope(folder, {"rope_parameters": YARN | {"rope_theta": 7.0}}) == RopeConfig(7.0, YARN)


def test_override_that_leaves_a_key_without_value_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="lacks 'hidden_size'"):
        ModelConfig.from_folder(folder, {"hidden_size": None})


def test_blocks_of_another_configuration_are_not_shared(folder: Path) -> None:
    plain = cache_identity(folder)

    assert cache_identity(folder, {}) == plain
    assert cache_identity(folder, {"rope_theta": 1.0}) != plain
    assert cache_identity(folder, {"a": 1, "b": 2}) == cache_identity(folder, {"b": 2, "a": 1})
