"""Which sampling defaults apply, and which `max_new_tokens` is a hard limit."""

import json
from pathlib import Path
from typing import Any

import pytest

from octavo_protocol.errors import ConfigError
from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.engine.default_params import (
    GenerationDefaults,
    default_sampling_params,
    generation_defaults,
)


def folder_with(path: Path, **values: Any) -> Path:
    path.mkdir()
    (path / "generation_config.json").write_text(json.dumps(values))
    return path


def test_the_model_s_file_gives_every_field_that_vllm_reads(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "skip_special_tokens": False,
    }
    ignored = {"eos_token_id": 2, "do_sample": True, "seed": 5, "top_h": None}
    model = folder_with(tmp_path / "model", max_new_tokens=99, **values, **ignored)

    assert generation_defaults(model) == GenerationDefaults(
        SamplingParams(max_tokens=99, **values), None
    )


def test_null_and_missing_values_and_a_missing_file_leave_the_built_in_defaults(
    tmp_path: Path,
) -> None:
    model = folder_with(tmp_path / "model", temperature=None, max_new_tokens=None)

    assert generation_defaults(model) == GenerationDefaults(SamplingParams(), None)
    assert generation_defaults(tmp_path) == GenerationDefaults(SamplingParams(), None)


def test_vllm_ignores_the_file(tmp_path: Path) -> None:
    model = folder_with(tmp_path / "model", temperature=0.6)

    assert generation_defaults(model, "vllm") == GenerationDefaults(SamplingParams(), None)


def test_another_folder_replaces_the_file_and_its_max_new_tokens_is_a_limit(tmp_path: Path) -> None:
    model = folder_with(tmp_path / "model", temperature=0.6, top_k=3)
    other = folder_with(tmp_path / "other", top_p=0.5, max_new_tokens=7)

    assert generation_defaults(model, str(other)) == GenerationDefaults(
        SamplingParams(top_p=0.5, max_tokens=7), 7
    )


def test_overrides_win_and_their_max_new_tokens_is_a_limit(tmp_path: Path) -> None:
    model = folder_with(tmp_path / "model", temperature=0.6, top_k=3, max_new_tokens=50)

    assert generation_defaults(model, override={"temperature": 0.2}) == GenerationDefaults(
        SamplingParams(temperature=0.2, top_k=3, max_tokens=50), None
    )
    assert generation_defaults(model, "vllm", {"max_new_tokens": 8}) == GenerationDefaults(
        SamplingParams(max_tokens=8), 8
    )


@pytest.mark.parametrize(
    ("name", "hint"), [("temperatur", "did you mean temperature"), ("zzz", "there are temperature")]
)
def test_an_override_of_what_does_not_exist_is_refused(
    tmp_path: Path, name: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=f"cannot set '{name}'; {hint}"):
        generation_defaults(tmp_path, override={name: 1})


def test_offline_defaults_are_the_same_values(tmp_path: Path) -> None:
    model = folder_with(tmp_path / "model", temperature=0.6)

    assert default_sampling_params(model, {"top_k": 2}) == SamplingParams(temperature=0.6, top_k=2)
    assert default_sampling_params(None) == SamplingParams()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "generation_config.json cannot be used: Expecting"),
        ("[]", "generation_config.json cannot be used: it holds no object"),
        ('{"temperature": 9}', "temperature must be in"),
        ('{"top_k": "many"}', "top_k must be an integer"),
    ],
)
def test_a_damaged_file_is_a_configuration_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)

    with pytest.raises(ConfigError, match=message):
        generation_defaults(tmp_path)


def test_a_folder_without_the_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no generation_config\.json"):
        generation_defaults(tmp_path, tmp_path / "nowhere")
