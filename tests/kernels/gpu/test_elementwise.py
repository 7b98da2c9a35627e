"""Norms, activation, rotary embedding and the cache write on the GPU, against their references."""

import pytest
import torch

from octavo_kernels.gpu import activation as gpu_activation
from octavo_kernels.gpu import kv_cache as gpu_kv_cache
from octavo_kernels.gpu import norm as gpu_norm
from octavo_kernels.gpu import rotary as gpu_rotary
from octavo_kernels.gpu import token_bitmask as gpu_token_bitmask
from octavo_kernels.kv_cache import FP8, new_kv_cache, write_kv_cache
from octavo_kernels.reference import activation, kv_cache, norm, rotary, token_bitmask

_DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# The interpreter cuts bf16 off where a GPU rounds.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def _random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = _TOLERANCE[expected.dtype]
    torch.testing.assert_close(actual.cpu(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("shape", [(1, 64), (5, 96), (2, 3, 576)])
def test_norms(device: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, residual = _random(*shape, dtype=dtype), _random(*shape, dtype=dtype, seed=1)
    weight = _random(shape[-1], dtype=dtype, seed=2)

    _close(gpu_norm.rms_norm(x.to(device), weight.to(device), 1e-5), norm.rms_norm(x, weight, 1e-5))
    actual = gpu_norm.add_rms_norm(x.to(device), residual.to(device), weight.to(device), 1e-5)
    expected = norm.add_rms_norm(x, residual, weight, 1e-5)
    _close(actual[0], expected[0])
    _close(actual[1], expected[1])


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("shape", [(1, 64), (5, 96), (2, 3, 576), (0, 64)])
@pytest.mark.parametrize("has_residual", [False, True])
def test_layer_norm(
    device: str, shape: tuple[int, ...], has_residual: bool, dtype: torch.dtype
) -> None:
    x, other = _random(*shape, dtype=dtype), _random(*shape, dtype=dtype, seed=1)
    weight, bias = _random(2, shape[-1], dtype=dtype, seed=2)
    residual = other if has_residual else None

    actual = gpu_norm.layer_norm(
        x.to(device),
        weight.to(device),
        bias.to(device),
        1e-5,
        None if residual is None else residual.to(device),
    )

    _close(actual, norm.layer_norm(x, weight, bias, 1e-5, residual))


@pytest.mark.parametrize("dtype", _DTYPES)
def test_a_norm_of_rows_that_lie_apart(device: str, dtype: torch.dtype) -> None:
    wide = _random(4, 200, dtype=dtype)
    weight = _random(64, dtype=dtype, seed=1)

    actual = gpu_norm.rms_norm(wide.to(device)[:, 8:72], weight.to(device), 1e-6)

    _close(actual, norm.rms_norm(wide[:, 8:72], weight, 1e-6))


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("size", [48, 1024, 1100])
def test_silu_and_mul(device: str, size: int, dtype: torch.dtype) -> None:
    gate_up = _random(3, 2 * size, dtype=dtype) * 3

    _close(gpu_activation.silu_and_mul(gate_up.to(device)), activation.silu_and_mul(gate_up))


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("form", ["tanh", "exact"])
def test_gelu_and_mul(device: str, form: str, dtype: torch.dtype) -> None:
    gate_up = _random(3, 96, dtype=dtype) * 3

    actual = gpu_activation.gelu_and_mul(gate_up.to(device), form)

    _close(actual, activation.gelu_and_mul(gate_up, form))


@pytest.mark.parametrize("dtype", _DTYPES)
def test_token_bitmask(device: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = _random(5, 5000, dtype=dtype)
    num_words = 150  # the last tokens have no word
    bitmask = torch.randint(-(2**31), 2**31, (3, num_words), generator=generator).to(torch.int32)
    expected = logits.clone()
    token_bitmask.apply_token_bitmask(expected, bitmask, [4, 0, 2])

    actual = logits.clone().to(device)
    gpu_token_bitmask.apply_token_bitmask(actual, bitmask.to(device), [4, 0, 2])

    assert torch.equal(actual.cpu(), expected)


@pytest.mark.parametrize("dtype", _DTYPES)
def test_write_kv_cache(device: str, dtype: torch.dtype) -> None:
    num_kv_heads, head_dim, block_size = 6, 80, 8
    qkv = _random(5, 3 * num_kv_heads, head_dim, dtype=dtype)
    slots = torch.tensor([0, 9, -1, 23, 16])
    outcomes: list[tuple[torch.Tensor, ...]] = []
    for where, write in (
        ("cpu", kv_cache.write_kv_cache),
        (device, gpu_kv_cache.write_kv_cache),
    ):
        shape = (3, block_size, num_kv_heads, head_dim)
        caches = new_kv_cache(*shape, dtype=dtype, device=where)
        for cache in caches:
            cache.fill_(-7)
        _, key, value = qkv.to(where).chunk(3, dim=1)
        write(key, value, *caches, slots.to(where))
        outcomes.append(caches)

    for expected, actual in zip(*outcomes, strict=True):
        assert torch.equal(actual.cpu(), expected)


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize(
    ("head_dim", "rotary_dim", "has_norm"), [(64, 64, False), (80, 80, True), (64, 32, True)]
)
@pytest.mark.parametrize("few", [1, 1024], ids=["many-tokens", "few-tokens"])
def test_rotary_and_cache(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    head_dim: int,
    rotary_dim: int,
    has_norm: bool,
    few: int,
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr(gpu_rotary, "_FEW_TOKENS", few)
    num_tokens, num_heads, num_kv_heads, block_size = 5, 6, 2, 8
    qkv = _random(num_tokens, num_heads + 2 * num_kv_heads, head_dim, dtype=dtype)
    angles = _random(40, rotary_dim // 2, dtype=torch.float32, seed=1)
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1)
    positions = torch.tensor([0, 39, 7, 8, 3])
    slots = torch.tensor([0, 9, -1, 23, 16])
    norms = [_random(head_dim, dtype=dtype, seed=seed) for seed in (2, 3)]
    outcomes: list[list[torch.Tensor]] = []
    for where in ("cpu", device):
        shape = (3, block_size, num_kv_heads, head_dim)
        caches = [cache.fill_(-7) for cache in new_kv_cache(*shape, dtype=dtype, device=where)]
        mine = qkv.clone().to(where)
        query, key = mine[:, :num_heads], mine[:, num_heads : num_heads + num_kv_heads]
        inputs = [query, key, mine[:, num_heads + num_kv_heads :]]
        inputs += [cos_sin.to(where), positions.to(where), *caches, slots.to(where)]
        if not outcomes:
            if has_norm:
                query.copy_(norm.rms_norm(query, norms[0], 1e-6))
                inputs[1] = norm.rms_norm(key, norms[1], 1e-6)
            rotary.rotary_and_cache(*inputs)
        else:
            gpu_rotary.rotary_and_cache(
                *inputs,
                query_norm=norms[0].to(where) if has_norm else None,
                key_norm=norms[1].to(where) if has_norm else None,
                eps=1e-6,
            )
            assert torch.equal(key.cpu(), qkv[:, num_heads : num_heads + num_kv_heads])
        outcomes.append([query, *caches])

    for expected, actual in zip(*outcomes, strict=True):
        _close(actual, expected.cpu())


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (80, 32)])
def test_an_fp8_cache_is_written_like_the_reference(
    device: str, head_dim: int, rotary_dim: int, dtype: torch.dtype
) -> None:
    """A number near the middle of two may become either; a too large one becomes the largest."""
    key, value = _random(2, 7, 2, head_dim, dtype=dtype) * 4
    key[3, 1] *= 1000
    value[4, 0, ::2] = -(2.0**100)
    value[4, 0, 1::2] = float("inf")
    angles = _random(40, rotary_dim // 2, dtype=torch.float32, seed=1)
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1)
    slots = torch.tensor([0, 9, -1, 23, 16, 1, 2])
    outcomes = []
    for rotate, where in ((rotary, "cpu"), (gpu_rotary, device)):
        caches = new_kv_cache(3, 8, 2, head_dim, dtype=FP8, device=where)
        for cache in caches:
            cache.fill_(-7)
        inputs = [key.clone(), key.clone(), value, cos_sin, torch.arange(7)]
        rotate.rotary_and_cache(*(each.to(where) for each in inputs), *caches, slots.to(where))
        outcomes.append([cache.cpu().float() for cache in caches])

    for expected, actual in zip(*outcomes, strict=True):
        assert expected.abs().max() == 448
        assert (actual == expected).float().mean() > 0.98
        torch.testing.assert_close(actual, expected, rtol=2**-3, atol=2**-9)  # the next number


def test_an_fp8_cache_is_written_unrotated(device: str) -> None:
    key, value = _random(2, 3, 2, 64, dtype=torch.bfloat16) * 300
    caches = new_kv_cache(2, 8, 2, 64, dtype=FP8, device=device)
    for cache in caches:
        cache.fill_(-7)
    write_kv_cache(
        key.to(device), value.to(device), *caches, torch.tensor([3, -1, 8], device=device)
    )

    keys, values = (cache.cpu().float() for cache in caches)
    for written, given in ((keys[0, :, :, 3], key[0]), (values[1, :, 0], value[2])):
        bounded = given.float().clamp(-448, 448)
        torch.testing.assert_close(written, bounded, rtol=2**-4, atol=2**-10)  # half a step
    assert (keys[1, :, :, 1:] == -7).all()
