"""What is left to the device follows from it; what is given stays."""

from pathlib import Path
from typing import Any

import pytest
import torch

from octavo_protocol.errors import ConfigError
from octavo_runtime.config import EngineConfig, ResolvedConfig
from octavo_runtime.engine.messages import EngineInfo
from octavo_runtime.engine.start_up import start_up_line, timed
from octavo_runtime.worker.device import resolve_config
from octavo_runtime.worker.encoder_limits import with_encoder_limits
from octavo_runtime.worker.gpu.step_graphs import graph_sizes


@pytest.fixture(params=[False, True], ids=["cpu-only", "with-gpu"])
def has_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)
    return bool(request.param)


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def resolved(**options: Any) -> ResolvedConfig:
    return resolve_config(EngineConfig(model=Path("m"), **options))


def limits(**options: Any) -> tuple[int, int]:
    config = resolved(**options)
    return config.max_num_seqs, config.max_num_batched_tokens


def test_defaults_follow_the_device(has_gpu: bool) -> None:
    assert resolved().device == ("cuda" if has_gpu else "cpu")
    assert limits() == ((256, 8192) if has_gpu else (64, 512))
    assert limits(is_offline=True) == ((256, 16384) if has_gpu else (64, 512))
    assert limits(device="cpu") == (64, 512)


def test_given_limits_stay_and_the_other_one_fits_them(has_gpu: bool) -> None:
    assert limits(max_num_seqs=3, max_num_batched_tokens=9) == (3, 9)
    assert limits(max_num_seqs=20_000) == (20_000, 20_000)
    assert limits(max_num_batched_tokens=24) == (24, 24)


def test_limits_that_contradict_each_other_are_refused(has_gpu: bool) -> None:
    with pytest.raises(ConfigError, match=r"tokens \(8\) must be at least max_num_seqs \(9\)"):
        resolved(max_num_seqs=9, max_num_batched_tokens=8)


def encoder_limits(**options: Any) -> tuple[int, int]:
    config = resolve_config(with_encoder_limits(EngineConfig(model=Path("m"), **options), 512))
    return config.max_num_seqs, config.max_num_batched_tokens


def test_an_encoders_steps_are_larger_and_hold_its_longest_prompt(has_gpu: bool) -> None:
    assert encoder_limits() == ((1024, 8192) if has_gpu else (128, 1024))
    assert encoder_limits(is_offline=True) == ((1024, 16384) if has_gpu else (256, 2048))
    assert encoder_limits(max_num_batched_tokens=600) == ((600, 600) if has_gpu else (128, 600))
    assert encoder_limits(max_num_seqs=20_000) == (20_000, 20_000)
    long = with_encoder_limits(EngineConfig(model=Path("m"), device="cpu"), 8192)
    assert (long.max_num_seqs, long.max_num_batched_tokens) == (128, 8192)
    with pytest.raises(ConfigError, match=r"is 511, but an encoder takes whole prompts of up to"):
        encoder_limits(max_num_batched_tokens=511)


def test_more_ranks_than_gpus_are_refused(with_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolved(tensor_parallel_size=2).tensor_parallel_size == 2
    assert resolved(tensor_parallel_size=3, device="cpu").tensor_parallel_size == 3
    with pytest.raises(ConfigError, match="is 3, but torch sees 2 GPUs here: set it to 2 or less"):
        resolved(tensor_parallel_size=3)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch sees no NVIDIA GPU here"):
        resolved(device="cuda")


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, graph_sizes(256)),
        ({"max_num_seqs": 20}, [1, 2, 4, 8, 16, 20]),
        ({"max_num_seqs": 1000}, graph_sizes(512)),
        ({"max_num_seqs": 1000, "max_cuda_graph_size": 600}, graph_sizes(600)),
        ({"max_cuda_graph_size": 4}, [1, 2, 4]),
        ({"cuda_graph_sizes": (64, 1, 1000, 1)}, [1, 64]),
        ({"cuda_graph_sizes": (64, 1), "max_cuda_graph_size": 32}, [1]),
        ({"cuda_graph_sizes": ()}, []),
        ({"max_cuda_graph_size": 0}, []),
        ({"enforce_eager": True, "cuda_graph_sizes": (8,)}, []),
        ({"device": "cpu"}, []),
    ],
)
@pytest.mark.usefixtures("with_gpu")
def test_graphs_are_of_sizes_that_can_occur(options: dict[str, Any], sizes: list[int]) -> None:
    assert list(resolved(**options).cuda_graph_sizes) == sizes


def test_all_other_settings_are_kept() -> None:
    given: dict[str, Any] = {"seed": 7, "hf_overrides": {"a": 1}, "block_size": 32}
    config = resolved(**given)
    assert {name: getattr(config, name) for name in given} == given


def test_stages_of_a_start_are_told_in_one_line() -> None:
    stages = {"weights": 2.0, "profile": 0.5, "kv_cache": 0.25}
    with timed(stages, "warm_up"):
        pass
    assert 0 <= stages["warm_up"] < 1
    stages["warm_up"] = 1.25
    info = EngineInfo(
        model="m",
        cache_model="m@1",
        dtype="bfloat16",
        block_size=16,
        num_blocks=10,
        max_model_len=64,
        max_num_seqs=8,
        vocab_size=100,
        eos_token_ids=[1],
        stages=stages,
    )
    line = "ready in 6.00 s: start 2.00 s, weights 2.00 s, profile 0.50 s, KV cache 0.25 s, "
    end = "; bfloat16, 160 tokens of KV cache"

    assert start_up_line(info, 6.0) == f"{line}warm-up 1.25 s{end}"
    info.num_graphs = 35
    assert start_up_line(info, 6.0) == f"{line}warm-up 1.25 s (35 CUDA graphs){end}"
