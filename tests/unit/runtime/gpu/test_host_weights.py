"""Weights that have been in host memory are the same afterwards, shared where they were shared."""

import torch
from torch import nn

from octavo_kernels import use_cpu_backend
from octavo_runtime.config import LoRAConfig
from octavo_runtime.layers.linear import Embedding, FusedLinear, OutputHead
from octavo_runtime.layers.lora import ModelAdapters
from octavo_runtime.lora.adapter import LoRAAdapter, LoRAMatrices
from octavo_runtime.worker.gpu.host_weights import HostWeights


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = Embedding("embed_tokens", 12, 8, torch.float32)
        self.layer = FusedLinear(8, {"q": 6, "k": 2}, bias=True, dtype=torch.float32)
        self.head = OutputHead(12, 8, torch.float32, tied_to=self.embedding)
        self.adapters = ModelAdapters(
            self, LoRAConfig(max_lora_rank=8), torch.float32, torch.device("cpu")
        )
        matrices = LoRAMatrices(torch.randn(2, 8), torch.randn(6, 2))
        self.adapters.set(0, LoRAAdapter("a", "1", 2, {"q": matrices}))
        self.own = nn.Parameter(torch.randn(3))
        self.register_buffer("table", torch.randn(5))

    def outputs(self) -> list[torch.Tensor]:
        self.adapters.use([-1, 0])
        hidden = self.layer(self.embedding(torch.tensor([3, 11])))
        return [hidden, self.head(hidden), self.own.detach() + 0, self.get_buffer("table") + 0]


def test_weights_come_back_as_they_were() -> None:
    torch.manual_seed(0)
    with torch.inference_mode(), use_cpu_backend("reference"):  # weights as a GPU has them
        model = _Model()
        for tensor in (model.embedding.weight, model.layer.weight, model.layer.bias):
            assert tensor is not None
            tensor.normal_()
        model.layer.pack()
        model.head.pack()
        before = model.outputs()

        weights = HostWeights(model)
        assert model.embedding.weight.untyped_storage().nbytes() == 0
        assert model.layer.adapters is not None
        assert model.layer.adapters.slots.b.untyped_storage().nbytes() == 0
        assert model.own.untyped_storage().nbytes() == 0
        for _ in range(2):  # again, where the first try ran out of memory
            weights.restore()
            for left, right in zip(model.outputs(), before, strict=True):
                assert torch.equal(left, right)
