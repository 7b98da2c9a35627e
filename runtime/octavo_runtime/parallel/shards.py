"""Which part of each of a model's matrices a rank owns. Pure.

    q, k, v        rows of whole heads        nothing to exchange before
    gate, up       rows                       nothing either
    o, down        columns: what the rank's own rows above feed; the ranks' results are summed
    lm_head        rows: tokens; the ranks' logits stand side by side
    all others     whole, on every rank

Source: Shoeybi et al. 2019, "Megatron-LM", §3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from octavo_protocol.errors import ConfigError
from octavo_runtime.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class Shard:
    """`size` of a matrix' `total` rows (dim 0) or columns (dim 1), from `first` on."""

    dim: Literal[0, 1]
    first: int
    size: int
    total: int

    @property
    def index(self) -> tuple[slice, ...]:
        """`whole[shard.index]` is the shard."""
        part = slice(self.first, self.first + self.size)
        return (part,) if self.dim == 0 else (slice(None), part)

    def whole_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the matrix, or of the bias, whose shard has this shape."""
        return (*shape[: self.dim], self.total, *shape[self.dim + 1 :])


@dataclass(frozen=True)
class ModelShards:
    """What rank `rank` of `size` owns of a model of Llama's shape.

    Raises `ConfigError` where the model cannot be divided among so many.
    """

    config: ModelConfig
    rank: int
    size: int

    def __post_init__(self) -> None:
        config = self.config
        if not _divides(config, self.size):
            sizes = [str(size) for size in range(1, config.num_heads + 1) if _divides(config, size)]
            raise ConfigError(
                f"tensor_parallel_size is {self.size}, but {config.num_heads} attention heads, "
                f"{config.num_kv_heads} key-value heads and {config.intermediate_size} inner "
                f"features cannot be divided among so many: set it to {', '.join(sizes)}"
            )

    @property
    def local_config(self) -> ModelConfig:
        """Of the model that the rank's shards make up: attention and MLP are those of a smaller
        one. Its vocabulary is the whole one.
        """
        config = self.config
        return replace(
            config,
            num_heads=config.num_heads // self.size,
            num_kv_heads=max(1, config.num_kv_heads // self.size),
            intermediate_size=config.intermediate_size // self.size,
        )

    def of_module(self, name: str) -> Shard | None:
        """Of the matrix with this checkpoint name, without `.weight`; None: it is whole."""
        config = self.config
        match name.rpartition(".")[2]:
            case "q_proj":
                return self._heads(0, config.num_heads)
            case "k_proj" | "v_proj":
                return self._heads(0, config.num_kv_heads)
            case "o_proj":
                return self._heads(1, config.num_heads)
            case "gate_proj" | "up_proj":
                return self._even(0, config.intermediate_size)
            case "down_proj":
                return self._even(1, config.intermediate_size)
            case "lm_head":
                return vocabulary_shard(config.vocab_size, self.rank, self.size)
        return None

    def of_tensor(self, name: str) -> Shard | None:
        """Of a tensor of the checkpoint; a bias goes by the rows of its matrix."""
        module, _, kind = name.rpartition(".")
        shard = self.of_module(module)
        return None if shard is not None and kind == "bias" and shard.dim == 1 else shard

    def _heads(self, dim: Literal[0, 1], num_heads: int) -> Shard:
        """With fewer heads than ranks, neighbours own the same one."""
        first, count = self.rank * num_heads // self.size, max(1, num_heads // self.size)
        width = self.config.head_dim
        return Shard(dim, first * width, count * width, num_heads * width)

    def _even(self, dim: Literal[0, 1], total: int) -> Shard:
        count = total // self.size
        return Shard(dim, self.rank * count, count, total)


def vocabulary_shard(vocab_size: int, rank: int, size: int) -> Shard:
    """Equal numbers of tokens, but for the last ranks, which may have fewer or none."""
    count = -(-vocab_size // size)
    first = min(rank * count, vocab_size)
    return Shard(0, first, min(count, vocab_size - first), vocab_size)


def _divides(config: ModelConfig, size: int) -> bool:
    kv_heads = config.num_kv_heads
    are_heads_whole = kv_heads % size == 0 or size % kv_heads == 0
    return are_heads_whole and config.num_heads % size == config.intermediate_size % size == 0
