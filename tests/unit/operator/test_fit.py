"""The arithmetic of weights, adapters and KV cache against configs of known models."""

from dataclasses import replace
from typing import Any

import pytest
from tests.fakes.observations import deployment

from octavo_operator.children.replica import lora_room
from octavo_operator.fit import Fit, check_fit, facts_from_config
from octavo_operator.observed import ModelFacts
from octavo_protocol.resources.model_deployment import ModelDeployment
from octavo_protocol.resources.parse import parse_model_deployment

LLAMA_3_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
QWEN3_30B_A3B: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "dtype": "bfloat16",
    "use_sliding_window": False,
    "sliding_window": 4096,
}
XLM_ROBERTA_LARGE: dict[str, Any] = {
    "model_type": "xlm-roberta",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "vocab_size": 250002,
    "max_position_embeddings": 8194,
    "torch_dtype": "float32",
}
LLAMA = ModelFacts(8_030_000_000, 2.0, 128 * 1024, 5_000_000, 8192)
MIB_80G = 81559


def parsed(**spec: Any) -> ModelDeployment:
    made = parse_model_deployment(deployment(**{"resources": {}, **spec}))
    assert isinstance(made, ModelDeployment)
    return made


def fit(gpu_memory_mib: int = MIB_80G, facts: ModelFacts = LLAMA, **spec: Any) -> Fit:
    found = check_fit(parsed(**spec), facts, gpu_memory_mib)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("config", "parameters", "kv_bytes"),
    [
        (LLAMA_3_8B, 8.03e9, 2 * 8 * 128 * 2 * 32),
        (QWEN3_30B_A3B, 30.5e9, 2 * 4 * 128 * 2 * 48),
        (XLM_ROBERTA_LARGE, 0.56e9, 0),
    ],
)
def test_shapes_give_the_known_size(
    config: dict[str, Any], parameters: float, kv_bytes: int
) -> None:
    facts = facts_from_config(config)

    assert facts is not None
    assert facts.num_parameters == pytest.approx(parameters, rel=0.01)
    assert facts.kv_bytes_per_token == kv_bytes
    assert facts.max_model_len == config["max_position_embeddings"]


def test_an_encoder_needs_room_for_its_weights_alone() -> None:
    facts = facts_from_config(XLM_ROBERTA_LARGE)
    assert facts is not None

    good = fit(8192, facts)
    bad = fit(1024, facts)

    assert good == Fit(True, "weights 2.1 GiB, no KV cache, in 1 x 8.0 GiB x 92% = 7.4 GiB")
    assert not bad.fits
    assert bad.message.startswith("weights 2.1 GiB do not fit into 1 x 1.0 GiB x 92% = 0.9 GiB: ")
    assert "1.2 GiB short; take larger GPUs" in bad.message


def test_the_index_knows_the_weights_better_than_the_shapes() -> None:
    facts = facts_from_config(LLAMA_3_8B, {"metadata": {"total_size": 16_060_522_496}})

    assert facts is not None
    assert facts.num_parameters == 8_030_261_248


def test_quantized_checkpoints_are_as_large_as_they_are_stored() -> None:
    def stored(**quantization: Any) -> float:
        facts = facts_from_config({**LLAMA_3_8B, "quantization_config": quantization})
        assert facts is not None
        return facts.bytes_per_parameter

    assert stored(quant_method="awq", bits=4) == 0.5
    assert stored(quant_method="fp8") == 1.0
    assert stored(quant_method="something-new") == 0.5


def test_only_layers_that_keep_everything_count_for_the_cache() -> None:
    types = ["sliding_attention", "full_attention"] * 16
    mixed = facts_from_config({**LLAMA_3_8B, "layer_types": types, "sliding_window": 1024})
    sliding = facts_from_config({**LLAMA_3_8B, "sliding_window": 4096})

    assert mixed is not None
    assert mixed.kv_bytes_per_token == 64 * 1024
    assert sliding is not None
    assert sliding.kv_bytes_per_token == 0


def test_latent_attention_keeps_one_vector_per_layer() -> None:
    facts = facts_from_config({**LLAMA_3_8B, "kv_lora_rank": 512, "qk_rope_head_dim": 64})

    assert facts is not None
    assert facts.kv_bytes_per_token == 576 * 2 * 32


def test_a_model_inside_a_larger_one_is_found() -> None:
    assert facts_from_config({"text_config": LLAMA_3_8B}) == facts_from_config(LLAMA_3_8B)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"hidden_size": "big"},
        {**LLAMA_3_8B, "num_attention_heads": 0},
        {**LLAMA_3_8B, "max_position_embeddings": float("inf")},
        {**LLAMA_3_8B, "vocab_size": True},
        {"text_config": []},
    ],
)
def test_nothing_is_guessed(config: dict[str, Any]) -> None:
    assert facts_from_config(config) is None


def test_what_fits_says_how_many_sequences() -> None:
    assert fit() == Fit(
        True,
        "weights 15.0 GiB, 58.3 GiB for the KV cache of 1 x 79.6 GiB x 92% = 73.3 GiB: "
        "58 of 256 sequences of 8192 tokens at once",
    )
    assert fit(engine={"maxModelLen": 1024, "maxNumSeqs": 8}).message.endswith(
        "8 of 8 sequences of 1024 tokens at once"
    )


def test_weights_that_do_not_fit_ask_for_more_gpus() -> None:
    found = fit(gpu_memory_mib=15360)

    assert not found.fits
    assert found.message == (
        "weights 15.0 GiB + one sequence of 8192 tokens 1.0 GiB do not fit into "
        "1 x 15.0 GiB x 92% = 13.8 GiB: 1.2 GiB short before any KV cache; take more or larger "
        "GPUs, or quantize"
    )


def test_a_length_that_does_not_fit_asks_for_a_shorter_one() -> None:
    found = fit(gpu_memory_mib=24576, engine={"maxModelLen": 131072})

    assert not found.fits
    assert found.message.endswith("8.9 GiB short; lower engine.maxModelLen or take more GPUs")


@pytest.mark.parametrize(
    ("spec", "weights"),
    [
        ({"engine": {"quantization": "fp8"}}, "weights 7.5 GiB"),
        ({"engine": {"dtype": "float32"}}, "weights 29.9 GiB"),
        ({"lora": {"maxLoras": 8, "maxLoraRank": 64}}, "weights 15.0 GiB + adapters 2.4 GiB"),
        ({"engine": {"tensorParallelSize": 2}}, "weights 15.0 GiB, 131.6 GiB for the KV cache"),
        ({"engine": {"kvCacheMemoryMib": 4096}}, "weights 15.0 GiB, 4.0 GiB for the KV cache"),
        ({"engine": {"kvCacheDtype": "fp8"}}, "weights 15.0 GiB, 58.3 GiB for the KV cache"),
    ],
)
def test_settings_that_take_or_give_memory(spec: dict[str, Any], weights: str) -> None:
    assert fit(**spec).message.startswith(weights)


def test_a_checkpoint_of_four_bits_stays_as_it_is() -> None:
    stored = replace(LLAMA, bytes_per_parameter=0.5)

    assert fit(facts=stored, engine={"dtype": "float16"}).message.startswith("weights 3.7 GiB")


def test_an_fp8_cache_holds_twice_the_sequences() -> None:
    assert "116 of 256" in fit(engine={"kvCacheDtype": "fp8"}).message


def test_a_cache_that_is_asked_for_must_be_there() -> None:
    assert not fit(gpu_memory_mib=20480, engine={"kvCacheMemoryMib": 8192}).fits


def test_without_model_gpu_or_its_memory_nothing_is_said() -> None:
    assert check_fit(parsed(), None, MIB_80G) is None
    assert check_fit(parsed(), LLAMA, None) is None
    assert check_fit(parsed(resources={"gpu": {"count": 0}}), LLAMA, MIB_80G) is None


def test_room_for_adapters_is_there_where_adapters_are() -> None:
    adapter = {"name": "a", "model": {"source": "hf://a/b"}}
    room = lora_room(parsed(adapters=[adapter]))

    assert lora_room(parsed()) is None
    assert room is not None
    assert room.max_loras == 8
