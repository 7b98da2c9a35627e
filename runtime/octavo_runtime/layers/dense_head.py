"""sentence-transformers' `Dense` module: a linear layer after pooling, in fp32."""

import safetensors
import torch
from torch import Tensor, nn

from octavo_protocol.errors import ConfigError
from octavo_runtime.pooling import DenseHead

FILE = "model.safetensors"
# By torch's name, without its module path.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    name: getattr(nn, name) for name in ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
}


class Dense:
    """Raises `ConfigError` for weights that are missing or of another shape."""

    def __init__(self, head: DenseHead, device: torch.device | str) -> None:
        self._weight = _read(head, "linear.weight", [head.out_features, head.in_features], device)
        self._bias = (
            _read(head, "linear.bias", [head.out_features], device) if head.has_bias else None
        )
        self._activation = ACTIVATIONS[head.activation]()

    def __call__(self, x: Tensor) -> Tensor:
        """x: [n, in_features] fp32 → [n, out_features]."""
        result: Tensor = self._activation(nn.functional.linear(x, self._weight, self._bias))
        return result


def _read(head: DenseHead, name: str, shape: list[int], device: torch.device | str) -> Tensor:
    path = head.folder / FILE
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{path} cannot give {name}: {error}") from error
    if list(tensor.shape) != shape:
        raise ConfigError(
            f"{path}: {name} has shape {list(tensor.shape)}, its config.json asks for {shape}"
        )
    return tensor.to(device, torch.float32)
