"""Encoder attention on the GPU, against its reference."""

import pytest
import torch

from octavo_kernels.gpu.attention_tile import TileConfig
from octavo_kernels.gpu.encoder_attention import encoder_attention
from octavo_kernels.reference import encoder_attention as reference

# The interpreter cuts bf16 off where a GPU rounds.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("dtype", list(_TOLERANCE))
@pytest.mark.parametrize("head_dim", [32, 48, 64])
@pytest.mark.parametrize("lengths", [[1], [16, 3], [33, 16, 5]], ids=str)
def test_ragged_batch_matches_reference(
    device: str, lengths: list[int], head_dim: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    fused = torch.randn(sum(lengths), 6, head_dim, generator=generator).to(dtype)
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    expected = torch.empty(sum(lengths), 2, head_dim, dtype=dtype)
    reference.encoder_attention(
        fused[:, :2], fused[:, 2:4], fused[:, 4:], starts, scale=0.2, out=expected
    )

    out = torch.full_like(expected, float("nan")).to(device)
    fused = fused.to(device)
    encoder_attention(
        fused[:, :2],
        fused[:, 2:4],
        fused[:, 4:],
        starts.to(device),
        max_query_len=max(lengths),
        scale=0.2,
        out=out,
        config=TileConfig(16, 16, 4, 2),
    )

    tolerance = _TOLERANCE[dtype]
    torch.testing.assert_close(out.cpu(), expected, rtol=tolerance, atol=tolerance)
