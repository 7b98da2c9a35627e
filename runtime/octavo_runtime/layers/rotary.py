"""Rotary position embedding tables, with the length scalings of the Llama family."""

import math

import torch

from octavo_protocol.errors import ConfigError
from octavo_runtime.model_config import RopeConfig


def rotary_table(config: RopeConfig, head_dim: int, max_positions: int) -> torch.Tensor:
    """cos and sin of every position: [max_positions, head_dim] fp32, cos in the first half.

    Only head_dim/2 angles exist per position (both halves of a head turn by the same angles), so
    the row is cos(angles) followed by sin(angles).

    Source: RoFormer, §3.4; "llama3" scaling: Llama 3.1's reference configuration.
    Raises `ConfigError` for a rope_type that is not known.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    inv_freq = 1.0 / (config.theta**exponents)
    kind = config.scaling.get("rope_type", "default")
    if kind == "linear":
        inv_freq = inv_freq / config.scaling["factor"]
    elif kind == "llama3":
        inv_freq = _llama3_frequencies(inv_freq, config)
    elif kind != "default":
        raise ConfigError(f"rope_type {kind!r} is not supported (default, linear, llama3 are)")
    angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), inv_freq)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _llama3_frequencies(inv_freq: torch.Tensor, config: RopeConfig) -> torch.Tensor:
    factor = config.scaling["factor"]
    low, high = config.scaling["low_freq_factor"], config.scaling["high_freq_factor"]
    original = config.scaling["original_max_position_embeddings"]
    wavelength = 2 * math.pi / inv_freq
    smooth = ((original / wavelength) - low) / (high - low)
    blended = (1 - smooth) * inv_freq / factor + smooth * inv_freq
    scaled = torch.where(wavelength > original / low, inv_freq / factor, inv_freq)
    is_medium = (wavelength <= original / low) & (wavelength >= original / high)
    return torch.where(is_medium, blended, scaled)


def rotated(x: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """`x` turned by its tokens' angles, without a cache to write to; in fp32, then x's dtype.

    x: [num_tokens, num_heads, head_dim]; cos_sin: [num_tokens, head_dim], rows of `rotary_table`;
    returns a new tensor.
    """
    cos, sin = cos_sin[:, None].chunk(2, dim=-1)
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)
