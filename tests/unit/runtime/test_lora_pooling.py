"""Adapters of a decoder that pools: vectors equal those of PEFT's merged models."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.fakes.lora_adapters import ALL_LINEAR, write_adapter
from transformers import BertConfig, LlamaConfig, LlamaForCausalLM

from octavo_protocol.errors import ConfigError, ValidationError
from octavo_protocol.pooling import PoolingParams
from octavo_runtime.config import EngineConfig, LoRAConfig
from octavo_runtime.engine.messages import PoolingRequest, PoolingResult
from octavo_runtime.engine.pooling_core import PoolingCore

LORA = LoRAConfig(max_loras=2, max_cpu_loras=4)
PROMPTS = [[(5 * i + k) % 64 for i in range(length)] for k, length in enumerate((1, 7, 40))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path_factory.mktemp("base"))
    return model


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def run(core: PoolingCore) -> dict[str, PoolingResult]:
    results: dict[str, PoolingResult] = {}
    while core.has_work():
        results |= {each.request_id: each for each in core.step().pooled}
        core.scheduler.check()
    return results


def load(core: PoolingCore, name: str, path: Path) -> str:
    answer = core.load_adapter(name, str(path))
    core.finish_loads()
    return f"{name}@{answer.result(0)['version']}"


def request(key: str, prompt: list[int], adapter: str) -> PoolingRequest:
    return PoolingRequest(key, prompt, PoolingParams(task="embed"), 0.0, adapter=adapter)


@torch.inference_mode()
def vector(model: Any, prompt: list[int]) -> torch.Tensor:
    state = model.model(torch.tensor([prompt])).last_hidden_state[0, -1]
    return torch.nn.functional.normalize(state, dim=-1)


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 16, "max_num_seqs": 3}])
def test_vectors_of_a_mixed_batch_equal_the_merged_models(
    model: Any, folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {
        "convert": "embed",
        "num_gpu_blocks_override": 32,
        "num_threads": 1,
    } | options
    core = PoolingCore(EngineConfig(model=folder, dtype="float32", lora=LORA, **settings))
    models, identities = {"": model}, {"": ""}
    for name, targets in {"a": ("q_proj", "v_proj"), "b": ALL_LINEAR, "c": ("o_proj",)}.items():
        path = write_adapter(tmp_path / name, folder, seed=ord(name), targets=targets)
        merged = PeftModel.from_pretrained(copy.deepcopy(model), path).merge_and_unload()
        models[name], identities[name] = merged, load(core, name, path)
    for index, prompt in enumerate(PROMPTS):
        for name, identity in identities.items():
            core.add_request(request(f"{name}{index}", prompt, identity))

    results = run(core)

    for index, prompt in enumerate(PROMPTS):
        for name, merged in models.items():
            found = np.frombuffer(results[f"{name}{index}"].data, dtype="<f4")
            np.testing.assert_allclose(found, vector(merged, prompt).numpy(), atol=1e-5)
    assert core.scheduler.turns.slots.held == {}
    assert all(each["num_requests"] == 0 for each in core.list_adapters())
    core.shutdown()


def test_an_adapter_of_the_body_alone_is_understood(
    model: Any, folder: Path, tmp_path: Path
) -> None:
    path = write_adapter(tmp_path / "body", folder, seed=1)
    file = path / "adapter_model.safetensors"
    whole = load_file(file)
    merged = PeftModel.from_pretrained(copy.deepcopy(model), path).merge_and_unload()
    save_file({key.replace("model.model.", "model.", 1): each for key, each in whole.items()}, file)
    config = EngineConfig(model=folder, convert="embed", dtype="float32", lora=LORA)
    core = PoolingCore(config)

    core.add_request(request("x", PROMPTS[1], load(core, "body", path)))
    found = np.frombuffer(run(core)["x"].data, dtype="<f4")

    np.testing.assert_allclose(found, vector(merged, PROMPTS[1]).numpy(), atol=1e-5)
    core.shutdown()


def test_an_adapter_that_is_not_there_fails_its_request_alone(folder: Path) -> None:
    core = PoolingCore(EngineConfig(model=folder, convert="embed", lora=LORA))
    core.add_request(request("lost", PROMPTS[1], "a@1"))
    core.add_request(request("well", PROMPTS[1], ""))

    results = run(core)

    assert results["lost"].error_kind == "AdapterNotFoundError"
    assert results["well"].finish_reason == "stop"
    core.shutdown()


def test_the_score_head_cannot_be_adapted(folder: Path, tmp_path: Path) -> None:
    overrides = {"architectures": ["LlamaForSequenceClassification"], "num_labels": 2}
    config = EngineConfig(model=folder, hf_overrides=overrides, load_format="dummy", lora=LORA)
    core = PoolingCore(config)
    path = write_adapter(tmp_path / "a", folder, seed=1)
    file = path / "adapter_model.safetensors"
    extra = {
        "base_model.model.score.lora_A.weight": torch.ones(8, 32),
        "base_model.model.score.lora_B.weight": torch.ones(2, 8),
    }
    save_file(load_file(file) | extra, file)
    with pytest.raises(ValidationError, match="changes score"):
        load(core, "a", path)
    core.shutdown()


def test_encoders_are_refused(tmp_path: Path) -> None:
    BertConfig(architectures=["BertModel"], num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="BertModel is an encoder"):
        PoolingCore(EngineConfig(model=tmp_path, load_format="dummy", lora=LORA))
