"""The ranks' shards together are the model, whatever its shape and however many ranks."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.tiny_model import write_tiny_model

from octavo_protocol.errors import ConfigError
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.parallel.shards import ModelShards, vocabulary_shard

_EVEN = ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig.from_folder(write_tiny_model(tmp_path_factory.mktemp("tiny")))


@cache
def matrix(rows: int, columns: int) -> torch.Tensor:
    return torch.arange(rows * columns).view(rows, columns)


@st.composite
def divided(draw: st.DrawFn) -> tuple[dict[str, int], int]:
    """A model's sizes and ranks that it can be divided among."""
    size = draw(st.sampled_from([1, 2, 3, 4, 8]))
    kv_heads = draw(
        st.sampled_from(sorted({1, size, 2 * size} | {n for n in (2, 4) if size % n == 0}))
    )
    heads = size * kv_heads * draw(st.integers(1, 2))
    return {
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": draw(st.integers(1, 4)),
        "intermediate_size": size * draw(st.integers(1, 5)),
        "vocab_size": draw(st.integers(1, 40)),
    }, size


def whole(config: ModelConfig, name: str) -> torch.Tensor:
    query, key = (each * config.head_dim for each in (config.num_heads, config.num_kv_heads))
    inner, hidden = config.intermediate_size, 5
    rows, columns = {
        "q_proj": (query, hidden), "k_proj": (key, hidden), "v_proj": (key, hidden),
        "o_proj": (hidden, query), "gate_proj": (inner, hidden), "up_proj": (inner, hidden),
        "down_proj": (hidden, inner), "lm_head": (config.vocab_size, hidden),
    }[name]  # fmt: skip
    return matrix(rows, columns)


@given(divided())
def test_shards_side_by_side_are_the_matrix(
    config: ModelConfig, of_model: tuple[dict[str, int], int]
) -> None:
    sizes, size = of_model
    config = replace(config, **sizes)  # type: ignore[arg-type]
    ranks = [ModelShards(config, rank, size) for rank in range(size)]
    for name in _EVEN:
        tensor = whole(config, name)
        shards = [rank.of_module(f"model.layers.0.x.{name}") for rank in ranks]
        parts = [tensor[shard.index] for shard in shards if shard is not None]
        dim = 1 if name in ("o_proj", "down_proj") else 0
        assert torch.equal(torch.cat(parts, dim), tensor)
        for shard, part in zip(shards, parts, strict=True):
            assert shard is not None
            assert shard.whole_shape(part.shape) == tuple(tensor.shape)


@given(divided())
def test_each_rank_has_the_key_value_heads_that_its_queries_attend_to(
    config: ModelConfig, of_model: tuple[dict[str, int], int]
) -> None:
    sizes, size = of_model
    config = replace(config, **sizes)  # type: ignore[arg-type]
    per_key = config.num_heads // config.num_kv_heads
    for rank in range(size):
        shards = ModelShards(config, rank, size)
        query, key = shards.of_module("q_proj"), shards.of_module("k_proj")
        assert query is not None
        assert key is not None
        assert key == shards.of_module("v_proj")
        local, width = shards.local_config, config.head_dim
        assert (query.size, key.size) == (local.num_heads * width, local.num_kv_heads * width)
        own_per_key = local.num_heads // local.num_kv_heads
        for head in range(local.num_heads):
            of_whole = (query.first // width + head) // per_key
            assert key.first // width + head // own_per_key == of_whole


@given(st.integers(1, 100), st.sampled_from([1, 2, 3, 4, 8]))
def test_tokens_are_in_equal_parts_but_for_the_last(vocab_size: int, size: int) -> None:
    shards = [vocabulary_shard(vocab_size, rank, size) for rank in range(size)]
    tokens = [token for shard in shards for token in range(vocab_size)[shard.index[0]]]
    width = -(-vocab_size // size)

    assert tokens == list(range(vocab_size))
    full = vocab_size // width
    assert [shard.size for shard in shards[:full]] == [width] * full


def test_biases_go_by_the_rows_of_their_matrix(config: ModelConfig) -> None:
    shards = ModelShards(config, 1, 2)

    assert shards.of_tensor("model.layers.0.self_attn.q_proj.bias") == shards.of_module("q_proj")
    assert shards.of_tensor("model.layers.0.self_attn.o_proj.bias") is None
    assert shards.of_tensor("model.layers.0.input_layernorm.weight") is None
    assert shards.of_tensor("model.embed_tokens.weight") is None


@pytest.mark.parametrize(
    ("sizes", "ranks", "message"),
    [
        ({}, 3, "4 attention heads.*cannot be divided among so many: set it to 1, 2, 4$"),
        ({"intermediate_size": 6}, 4, "6 inner features cannot .* set it to 1, 2$"),
        ({"num_heads": 12, "num_kv_heads": 6}, 4, "6 key-value heads .* set it to 1, 2$"),
    ],
)
def test_a_model_that_cannot_be_divided_says_among_how_many_it_can(
    config: ModelConfig, sizes: dict[str, int], ranks: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelShards(replace(config, **sizes), 0, ranks)  # type: ignore[arg-type]
