from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo_kernels import kv_cache_shapes, rotary_and_cache, use_cpu_backend, write_kv_cache

NAN = float("nan")


def table(head_dim: int, max_position: int = 4096) -> Tensor:
    frequencies = 10000.0 ** -(torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(max_position).float(), frequencies)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def caches(head_dim: int, block_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    key_shape, value_shape = kv_cache_shapes(6, block_size, 2, head_dim)
    return torch.full(key_shape, NAN, dtype=dtype), torch.full(value_shape, NAN, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("head_dim", "rotary_dim", "block_size"),
    [(64, 64, 16), (64, 32, 16), (80, 80, 16), (96, 96, 8), (128, 128, 32), (256, 256, 16)],
)
def test_matches_reference_in_every_slot(
    generator: torch.Generator, head_dim: int, rotary_dim: int, block_size: int, dtype: torch.dtype
) -> None:
    num_tokens = 21
    fused = torch.randn(num_tokens, 8, head_dim, generator=generator).to(dtype)
    positions = torch.randint(0, 4096, (num_tokens,), generator=generator)
    slots = torch.randperm(6 * block_size, generator=generator)[:num_tokens]
    slots[[0, 7]] = -1
    results = []
    for choice in ("auto", "reference"):
        with use_cpu_backend(choice):
            copy = fused.clone()
            query, key, value = copy[:, :4], copy[:, 4:6], copy[:, 6:]
            key_cache, value_cache = caches(head_dim, block_size, dtype)
            rotary_and_cache(
                query, key, value, table(rotary_dim), positions, key_cache, value_cache, slots
            )
            assert torch.equal(copy[:, 4:], fused[:, 4:])
            results.append((query, key_cache, value_cache))
    # fp32: two products and a sum, fused or not, differ by an ulp of values up to ~8.
    # bf16: one last bit of those.
    bound = 1e-6 if dtype == torch.float32 else 2**-7
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=bound, rtol=bound, equal_nan=True)


def test_slot_minus_one_is_not_written(generator: torch.Generator, backend: str) -> None:
    key_cache, value_cache = caches(64, 16, torch.float32)
    key, value = torch.randn(2, 3, 2, 64, generator=generator)
    slots = torch.tensor([-1, 17, -1])
    write_kv_cache(key, value, key_cache, value_cache, slots)
    written = torch.zeros(6, 16, dtype=torch.bool)
    written[1, 1] = True
    assert torch.equal(~key_cache.isnan().any(dim=2).any(dim=1), written)
    assert torch.equal(~value_cache.isnan().any(dim=3).any(dim=1), written)
    assert torch.equal(key_cache[1, :, :, 1], key[1])
    assert torch.equal(value_cache[1, :, 1], value[1])


def test_agrees_with_hugging_face_llama(generator: torch.Generator, backend: str) -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    query, key = (
        torch.randn(1, 11, 4, 64, generator=generator),
        torch.randn(1, 11, 2, 64, generator=generator),
    )
    positions = torch.arange(100, 111)
    cos, sin = table(64)[positions].chunk(2, dim=-1)
    full = [torch.cat((each, each), dim=-1)[None] for each in (cos, sin)]
    expected_query, expected_key = llama.apply_rotary_pos_emb(query, key, *full, unsqueeze_dim=2)
    key_cache, value_cache = caches(64, 16, torch.float32)
    slots = torch.arange(11)
    actual = query[0].clone()
    rotary_and_cache(actual, key[0], key[0], table(64), positions, key_cache, value_cache, slots)
    torch.testing.assert_close(actual, expected_query[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(
        key_cache[0, :, :, :11].permute(2, 0, 1), expected_key[0], atol=1e-6, rtol=0
    )
