"""An adapter in host memory, ready to be copied into a slot of the device.

    y = x Wᵀ + scaling · (x Aᵀ) Bᵀ          A: [rank, in_features], B: [out_features, rank]

Source: Hu et al. 2021, "LoRA", §4.1; rank-stabilised scaling: Kalajdzievski 2023.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from octavo_protocol.lora import adapter_identity


@dataclass(frozen=True, slots=True)
class LoRAMatrices:
    """What one matrix of the model gets. a: [rank, in_features]; b: [out_features, rank], with the
    scaling in it. Both contiguous, of the engine's LoRA dtype, on the CPU.
    """

    a: Tensor
    b: Tensor

    @property
    def num_bytes(self) -> int:
        return self.a.nbytes + self.b.nbytes


@dataclass(frozen=True, slots=True)
class LoRAAdapter:
    """modules: by the name of the matrix in the checkpoint without `.weight`, such as
    `model.layers.0.self_attn.q_proj`. version: names the contents; other files, other version.
    rank: the largest of its matrices.
    """

    name: str
    version: str
    rank: int
    modules: Mapping[str, LoRAMatrices]

    @property
    def identity(self) -> str:
        """`HashIdentity.adapter`: blocks of another version are never shared."""
        return adapter_identity(self.name, self.version)

    @property
    def num_bytes(self) -> int:
        return sum(each.num_bytes for each in self.modules.values())
