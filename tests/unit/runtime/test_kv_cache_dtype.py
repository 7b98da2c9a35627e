"""The dtype of the KV cache: who may choose it, and what it is part of."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.runtime.test_engine_sampling import PROMPT, engine, folder, generate

from octavo_kernels.kv_cache import FP8
from octavo_protocol.errors import ConfigError
from octavo_protocol.hashing import HashIdentity
from octavo_protocol.outputs import RequestOutput
from octavo_runtime.model_config import kv_identity, resolve_kv_cache_dtype
from octavo_runtime.worker import loaded_model

__all__ = ["folder"]


def prompt_logprobs(output: RequestOutput) -> torch.Tensor:
    """Of each prompt token but the first, given those before it."""
    assert output.prompt_logprobs is not None
    assert output.prompt_token_ids is not None
    pairs = zip(output.prompt_logprobs, output.prompt_token_ids, strict=True)
    return torch.tensor([scores[token].logprob for scores, token in pairs if scores is not None])


def check_close(rounded: torch.Tensor, exact: torch.Tensor, mean: float = 0.03) -> None:
    """Keys and values are off by up to 2^-4 of themselves: some percent of a log-probability.

    mean: of the errors, at most; it depends on the model's random weights.
    """
    errors = (rounded - exact).abs()
    assert 0 < errors.mean() < mean
    assert errors.max() < 5 * mean


@pytest.mark.parametrize("name", ["fp8", "fp8_e4m3"])
def test_a_cpu_refuses_fp8_and_says_so(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"kv_cache_dtype is {name}, but a CPU keeps"):
        engine(folder, kv_cache_dtype=name)


@pytest.mark.parametrize(("capability", "is_enough"), [((8, 0), False), ((8, 9), True)])
def test_an_old_gpu_refuses_fp8(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], is_enough: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    if is_enough:
        assert resolve_kv_cache_dtype("fp8", torch.bfloat16, "cuda") is FP8
    else:
        with pytest.raises(ConfigError, match=r"8\.9 or newer; this one has 8\.0"):
            resolve_kv_cache_dtype("fp8", torch.bfloat16, "cuda")
    assert resolve_kv_cache_dtype("auto", torch.float16, "cuda") is torch.float16


def test_a_block_never_matches_one_of_another_dtype(folder: Path) -> None:
    assert engine(folder, cache_model="m@1").info.cache_model == "m@1+float32"
    names = [kv_identity("m@1", dtype) for dtype in (torch.bfloat16, FP8)]
    assert names == ["m@1+bfloat16", "m@1+float8_e4m3fn"]
    assert len({HashIdentity(name).extra() for name in names}) == 2


@pytest.mark.parametrize("options", [{}, {"long_prefill_token_threshold": 1}])
def test_log_probabilities_stay_close(
    monkeypatch: pytest.MonkeyPatch, folder: Path, options: dict[str, Any]
) -> None:
    """The references of the kernels, which know fp8 on a CPU too."""
    wanted = {"prompt": PROMPT, "prompt_logprobs": 0, "max_tokens": 1}
    [exact] = generate(engine(folder, **options), wanted)
    monkeypatch.setattr(loaded_model, "resolve_kv_cache_dtype", lambda *_: FP8)
    [rounded] = generate(engine(folder, **options), wanted)

    check_close(prompt_logprobs(rounded), prompt_logprobs(exact))


def test_the_cache_holds_more_blocks_in_fewer_bytes(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    options: dict[str, Any] = {"kv_cache_memory_bytes": 2**17, "num_gpu_blocks_override": None}
    exact = engine(folder, **options)
    monkeypatch.setattr(loaded_model, "resolve_kv_cache_dtype", lambda *_: FP8)
    rounded = engine(folder, **options)

    assert rounded.info.num_blocks == 4 * exact.info.num_blocks
    assert rounded.core.runner.kv_caches[0].key.dtype is FP8
