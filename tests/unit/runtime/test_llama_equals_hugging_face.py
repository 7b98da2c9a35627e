"""Tiny random Llama checkpoints: the engine's logprobs equal Hugging Face's, whatever the shape."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from octavo_protocol.errors import ConfigError
from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.engine_core import EngineCore
from octavo_runtime.engine.messages import EngineRequest

BASE: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def make(folder: Path, shard: str = "5GB", **changes: Any) -> Any:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(BASE | changes))).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def engine(folder: Path, **options: Any) -> EngineCore:
    return EngineCore(EngineConfig(model=folder, num_gpu_blocks_override=64, **options))


def greedy_with_logprobs(core: EngineCore, prompt: list[int]) -> tuple[list[int], list[float]]:
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=0)
    core.add_request(EngineRequest("a", prompt, params, 0.0))
    tokens, logprobs = [], []
    while core.has_work():
        for output in core.step().outputs:
            tokens += output.new_token_ids
            logprobs += [position.logprobs[0] for position in output.new_logprobs or []]
    return tokens, logprobs


@pytest.mark.parametrize(
    ("changes", "shard"),
    [
        ({}, "5GB"),
        ({"tie_word_embeddings": True}, "5GB"),
        ({"attention_bias": True, "mlp_bias": True}, "5GB"),
        ({"head_dim": 80}, "5GB"),
        ({"head_dim": 96, "num_key_value_heads": 4}, "5GB"),
        ({"head_dim": 128, "num_key_value_heads": 1}, "5GB"),
        ({"rope_parameters": LLAMA3}, "5GB"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, "5GB"),
        ({}, "50KB"),
    ],
    ids=[
        "plain",
        "tied",
        "bias",
        "dim80",
        "dim96-mha",
        "dim128-mqa",
        "llama3",
        "linear",
        "sharded",
    ],
)
def test_greedy_and_logprobs(tmp_path: Path, changes: dict[str, Any], shard: str) -> None:
    model = make(tmp_path, shard, **changes)
    if shard != "5GB":
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
    prompt = [(7 * i) % 256 for i in range(70)]
    core = engine(tmp_path, max_num_batched_tokens=64)
    tokens, logprobs = greedy_with_logprobs(core, prompt)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    assert tokens == logits.argmax(-1).tolist()
    reference = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).squeeze(1)
    assert torch.allclose(torch.tensor(logprobs), reference, atol=1e-4)


def test_dummy_weights_need_no_checkpoint(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tokens, _ = greedy_with_logprobs(engine(tmp_path, load_format="dummy"), [1, 2, 3])
    assert len(tokens) == 12


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["MambaForCausalLM"]},
            "architecture 'MambaForCausalLM' is not supported",
        ),
        ({"architectures": None}, "architectures must name one class"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn' is not supported"),
        ({"dtype": "float8"}, "dtype 'float8' is not supported"),
        ({"sliding_window": 128}, "sliding_window=128 is not supported"),
        ({"intermediate_size": 128}, r"has shape \[64, 160\] in the checkpoint"),
        ({"num_hidden_layers": 3}, "lacks 9 of 30 tensors"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    make(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        engine(tmp_path)


def test_damaged_weights_are_refused_by_name(tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ConfigError, match=r"model\.safetensors is damaged"):
        engine(tmp_path)


def test_a_missing_shard_is_refused_by_name(tmp_path: Path) -> None:
    make(tmp_path, "50KB")
    (tmp_path / "model-00002-of-00009.safetensors").unlink(missing_ok=True)
    next(iter(sorted(tmp_path.glob("*.safetensors")))).unlink()
    with pytest.raises(ConfigError, match=r"lacks .* weight files"):
        engine(tmp_path)


def test_an_index_cannot_point_outside_the_folder(tmp_path: Path) -> None:
    make(tmp_path, "50KB")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../secret.safetensors"}}))
    with pytest.raises(ConfigError, match="outside the folder"):
        engine(tmp_path)


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="is a pickle, which can run code"):
        engine(tmp_path)


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        engine(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_model_len": 257}, "takes 2 to 256 tokens"),
        ({"max_model_len": 1}, "takes 2 to 256 tokens"),
        ({"num_gpu_blocks_override": 15}, "holds 15 blocks x 16 tokens = 240 tokens"),
        (
            {"kv_cache_memory_bytes": 4096, "num_gpu_blocks_override": None},
            "it needs 16 blocks x 8192 bytes = 131072 bytes",
        ),
        ({"max_num_batched_tokens": 8, "max_num_seqs": 9}, r"must be at least max_num_seqs \(9\)"),
    ],
    ids=["long", "short", "blocks", "memory", "budget"],
)
def test_limits_that_do_not_fit_are_explained(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    make(tmp_path)
    with pytest.raises(ConfigError, match=message):
        EngineCore(EngineConfig(model=tmp_path, **({"num_gpu_blocks_override": 64} | options)))
