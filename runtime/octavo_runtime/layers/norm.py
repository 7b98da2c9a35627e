"""RMS and layer normalisation, alone or fused with the residual addition before it."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from octavo_kernels.norm import add_rms_norm, layer_norm, rms_norm


class RMSNorm(nn.Module):
    """Source: Zhang and Sennrich 2019. Variance in fp32, as Hugging Face's Llama does."""

    def __init__(self, name: str, hidden_size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.name = name
        self.eps = eps
        self.weight = torch.empty(hidden_size, dtype=dtype)

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        yield f"{prefix}{self.name}.weight", self.weight

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(normed, residual): adds `x` to the residual stream first where there is one.

        x, residual: [num_tokens, hidden_size].
        """
        if residual is None:
            return rms_norm(x, self.weight, self.eps), x
        return add_rms_norm(x, residual, self.weight, self.eps)


class LayerNorm(nn.Module):
    """Source: Ba et al. 2016. bias: whether the checkpoint has one; else it is zero."""

    def __init__(
        self, name: str, hidden_size: int, eps: float, dtype: torch.dtype, *, bias: bool = True
    ) -> None:
        super().__init__()
        self.name = name
        self.eps = eps
        self.weight = torch.empty(hidden_size, dtype=dtype)
        self.bias = torch.zeros(hidden_size, dtype=dtype)
        self._has_bias = bias

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        yield f"{prefix}{self.name}.weight", self.weight
        if self._has_bias:
            yield f"{prefix}{self.name}.bias", self.bias

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Of `x`, or of x + residual. x, residual: [num_tokens, hidden_size]."""
        return layer_norm(x, self.weight, self.bias, self.eps, residual)
