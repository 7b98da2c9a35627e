"""Linear layers: one matrix that several checkpoint tensors may share, packed once it is loaded.

A layer names the checkpoint tensors it is made of (`weight_targets`); the loader copies each into
its rows as it streams by. `pack()` then brings the matrix into the form that the kernel wants.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from octavo_kernels.activation import GeluForm, silu_and_mul
from octavo_kernels.linear import (
    PackedWeight,
    linear,
    linear_gelu,
    linear_silu_and_mul,
    pack_linear_weight,
)
from octavo_runtime.layers.lora import LayerAdapters
from octavo_runtime.parallel.group import ALONE, Group
from octavo_runtime.parallel.shards import vocabulary_shard


class FusedLinear(nn.Module):
    """y = x Wᵀ + b, where W stacks the rows of several checkpoint matrices.

    qkv_proj = FusedLinear(576, {"q_proj": 576, "k_proj": 192, "v_proj": 192})

                q_proj  (576 rows)
    weight  =   k_proj  (192 rows)      one matmul instead of three
                v_proj  (192 rows)
    """

    def __init__(
        self, in_features: int, parts: Mapping[str, int], *, bias: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.parts = dict(parts)
        self.adapters: LayerAdapters | None = None
        self.adapter_inputs = in_features
        out_features = sum(self.parts.values())
        self.weight: Tensor | None = torch.empty(out_features, in_features, dtype=dtype)
        self.bias: Tensor | None = torch.empty(out_features, dtype=dtype) if bias else None
        self._packed: PackedWeight | None = None

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """(checkpoint name, tensor to fill) for every part; `prefix` is the parent module's."""
        assert self.weight is not None, "weights are loaded before pack()"
        row = 0
        for name, rows in self.parts.items():
            yield f"{prefix}{name}.weight", self.weight[row : row + rows]
            if self.bias is not None:
                yield f"{prefix}{name}.bias", self.bias[row : row + rows]
            row += rows

    def adapter_parts(self, prefix: str) -> dict[str, int]:
        return {f"{prefix}{name}": rows for name, rows in self.parts.items()}

    def pack(self) -> None:
        """Brings the loaded matrix into the kernel's layout and gives up the plain one."""
        assert self.weight is not None, "pack() is called once"
        self._packed = pack_linear_weight(self.weight)
        self.weight = None

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_tokens, in_features] → [num_tokens, out_features]."""
        assert self._packed is not None, "pack() comes before the first step"
        y = linear(x, self._packed, self.bias)
        if self.adapters is not None:
            self.adapters.add(y, x)
        return y

    def silu_and_mul(self, x: Tensor) -> Tensor:
        """silu(first half of y) * second half: [num_tokens, out_features / 2]."""
        if self.bias is not None or (self.adapters is not None and self.adapters.is_used):
            return silu_and_mul(self(x))
        assert self._packed is not None, "pack() comes before the first step"
        return linear_silu_and_mul(x, self._packed)

    def gelu(self, x: Tensor, form: GeluForm) -> Tensor:
        """gelu(y): [num_tokens, out_features]."""
        assert self._packed is not None, "pack() comes before the first step"
        return linear_gelu(x, self._packed, self.bias, form)


class Linear(FusedLinear):
    """A `FusedLinear` of one checkpoint matrix."""

    def __init__(
        self, name: str, in_features: int, out_features: int, *, bias: bool, dtype: torch.dtype
    ) -> None:
        super().__init__(in_features, {name: out_features}, bias=bias, dtype=dtype)


class SummedLinear(Linear):
    """A `Linear` of which each rank has some columns; the ranks' outputs are summed.

    in_features: of this rank. What adapters add to the output of one rank is summed with it.
    """

    def __init__(
        self,
        name: str,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        group: Group,
    ) -> None:
        super().__init__(
            name, in_features, out_features, bias=bias and group.rank == 0, dtype=dtype
        )
        self._group = group

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_tokens, in_features] → [num_tokens, out_features], the same on all ranks."""
        return self._group.all_reduce(super().forward(x))


class Embedding(nn.Module):
    """Token embedding; when tied, also the output matrix."""

    def __init__(self, name: str, vocab_size: int, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.name = name
        self.weight = torch.empty(vocab_size, hidden_size, dtype=dtype)
        self.adapters: LayerAdapters | None = None
        self.adapter_inputs = vocab_size

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        yield f"{prefix}{self.name}.weight", self.weight

    def adapter_parts(self, prefix: str) -> dict[str, int]:
        return {f"{prefix}{self.name}": self.weight.shape[1]}

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids: [num_tokens] int64 → [num_tokens, hidden_size]."""
        y = nn.functional.embedding(token_ids, self.weight)
        if self.adapters is not None:
            self.adapters.add_embedding(y, token_ids)
        return y


class OutputHead(nn.Module):
    """Hidden states to logits: its own matrix, or the embedding's when tied.

    Each rank of `group` has the rows of some tokens. What adapters add to the embedding is not
    added here: to PEFT they are two modules.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        dtype: torch.dtype,
        *,
        tied_to: Embedding | None,
        group: Group = ALONE,
    ) -> None:
        super().__init__()
        self._group = group
        self._vocab_size = vocab_size
        self._shard = vocabulary_shard(vocab_size, group.rank, group.size)
        self._tied_to = (tied_to,)  # in a tuple: not a submodule, its weights are loaded there
        self.weight: Tensor | None = (
            None if tied_to else torch.empty(self._shard.size, hidden_size, dtype=dtype)
        )
        self._packed: PackedWeight | None = None
        self.adapters: LayerAdapters | None = None
        self.adapter_inputs = hidden_size

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        if self.weight is not None:
            yield f"{prefix}lm_head.weight", self.weight

    def adapter_parts(self, prefix: str) -> dict[str, int]:
        return {f"{prefix}lm_head": self._shard.size}

    def pack(self) -> None:
        (embedding,) = self._tied_to
        weight = self.weight if embedding is None else embedding.weight[self._shard.index]
        assert weight is not None
        self._packed = pack_linear_weight(weight)
        self.weight = None

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [num_rows, hidden_size] → logits [num_rows, vocab_size]; see
        `Group.gather_columns` for ranks other than 0.
        """
        assert self._packed is not None
        logits = linear(hidden, self._packed, None)
        if self.adapters is not None:
            self.adapters.add(logits, hidden)
        return self._group.gather_columns(logits, self._vocab_size)
