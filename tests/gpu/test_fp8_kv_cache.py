"""The engine with an fp8 KV cache: outputs close to those without, from half the bytes."""

from typing import Any

import pytest
from tests.gpu.conftest import PROMPT, NewEngine
from tests.unit.runtime.test_engine_sampling import generate
from tests.unit.runtime.test_kv_cache_dtype import check_close, prompt_logprobs

from octavo_kernels.kv_cache import FP8

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "options",
    [{}, {"long_prefill_token_threshold": 1}, {"long_prefill_token_threshold": 7}],
    ids=["prefill", "decode", "chunks"],
)
def test_log_probabilities_stay_close(
    new_engine: NewEngine, options: dict[str, Any], dtype: str
) -> None:
    wanted = {"prompt": PROMPT, "prompt_logprobs": 0, "max_tokens": 1}
    [exact] = generate(new_engine(**options), wanted)
    llm = new_engine(kv_cache_dtype="fp8", dtype=dtype, **options)
    [rounded] = generate(llm, wanted)

    assert llm.core.runner.kv_caches[0].key.dtype is FP8
    # The references on the CPU: 0.086 for one model, 0.077 for the other; at most 0.22.
    check_close(prompt_logprobs(rounded), prompt_logprobs(exact), mean=0.12)


def test_graphs_and_the_prefix_cache_give_the_same_tokens(new_engine: NewEngine) -> None:
    wanted = {"prompt": PROMPT, "temperature": 0.0, "max_tokens": 30, "ignore_eos": True}
    options: dict[str, Any] = {"kv_cache_dtype": "fp8", "max_num_batched_tokens": 64}
    expected = generate(new_engine(enforce_eager=True, **options), wanted)
    llm = new_engine(**options)
    for _ in range(2):  # the second time from the prefix cache
        [actual] = generate(llm, wanted)
        assert actual.outputs[0].token_ids == expected[0].outputs[0].token_ids


def test_the_pool_holds_twice_the_blocks(new_engine: NewEngine) -> None:
    options: dict[str, Any] = {"num_gpu_blocks_override": None, "kv_cache_memory_bytes": 2**20}
    half = new_engine(dtype="bfloat16", **options).info
    rounded = new_engine(dtype="bfloat16", kv_cache_dtype="fp8", **options).info

    assert rounded.num_blocks == 2 * half.num_blocks
    assert rounded.cache_model != half.cache_model


def test_its_memory_is_what_it_says(new_engine: NewEngine) -> None:
    llm = new_engine(dtype="bfloat16", kv_cache_dtype="fp8")
    cache = sum(each.key.nbytes + each.value.nbytes for each in llm.core.runner.kv_caches)

    assert cache == llm.info.num_blocks * llm.core.runner.kv_block_bytes
