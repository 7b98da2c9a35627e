"""A step of mixed adapters computes what models compute that have the adapters merged into them."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from octavo_kernels import use_cpu_backend
from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.config import EngineConfig, LoRAConfig, ResolvedConfig
from octavo_runtime.layers.sampling.rows import SamplingRow
from octavo_runtime.lora.adapter import LoRAAdapter, LoRAMatrices
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.worker.cpu_runner import CpuModelRunner
from octavo_runtime.worker.device import resolve_config
from octavo_runtime.worker.gpu.runner import GpuModelRunner
from octavo_runtime.worker.model_runner import ModelRunner, SampleWork
from octavo_runtime.worker.prompt_scores import PromptPart
from octavo_runtime.worker.step_input import StepSequence

_SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
}
_KINDS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": False, "mlp_bias": True}),
    "llama, tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"tie_word_embeddings": False}),
}
_BLOCKS_EACH = 4
_WHOLE = SamplingRow(SamplingParams(temperature=0.0, logprobs=-1))
RunnerOf = Callable[[ResolvedConfig, ModelConfig, int], ModelRunner]


def _on_device(config: ResolvedConfig, model: ModelConfig, max_model_len: int) -> ModelRunner:
    return GpuModelRunner(config, model, max_model_len, device="cpu")


@pytest.fixture(params=["cpu", "device"])
def new_runner(request: pytest.FixtureRequest) -> Any:
    """The CPU's runner, and a GPU's with the references of its kernels."""
    if request.param == "cpu":
        yield CpuModelRunner
    else:
        with use_cpu_backend("reference"):
            yield _on_device


def _save(folder: Path, kind: str) -> nn.Module:
    model_class, config_class, changes = _KINDS[kind]
    torch.manual_seed(0)
    model: nn.Module = model_class(config_class(**(_SHAPE | changes))).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)  # type: ignore[operator]
    return model


def _runner(new: RunnerOf, folder: Path, **lora: Any) -> ModelRunner:
    config = EngineConfig(model=folder, device="cpu", lora=LoRAConfig(**lora), max_num_seqs=8)
    runner = new(resolve_config(config), ModelConfig.from_folder(folder, {}), 64)
    runner.allocate_kv_cache(8 * _BLOCKS_EACH)
    return runner


def _adapter(
    targets: Mapping[str, tuple[int, int]], seed: int, wanted: str = "", rank: int = 4
) -> LoRAAdapter:
    """Of the matrices whose name has `wanted` in it."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for name, (out_features, in_features) in targets.items():
        if wanted in name:
            a = torch.randn(rank, in_features, generator=generator)
            b = torch.randn(out_features, rank, generator=generator)
            modules[name] = LoRAMatrices(a * 0.1, b * 0.1)
    return LoRAAdapter(f"adapter-{seed}", "1", rank, modules)


def _merged(model: nn.Module, adapter: LoRAAdapter | None) -> nn.Module:
    """To PEFT the embedding and the output matrix are two modules, also where they are tied."""
    merged: Any = copy.deepcopy(model)
    merged.lm_head.weight = nn.Parameter(merged.lm_head.weight.detach().clone())
    for name, matrices in ({} if adapter is None else adapter.modules).items():
        change = matrices.b @ matrices.a
        weight = merged.get_submodule(name).weight.data
        weight += change.T if "embed" in name else change
    return merged  # type: ignore[no-any-return]


def _logprobs(model: nn.Module, token_ids: list[int]) -> torch.Tensor:
    """[num_tokens, vocab_size]"""
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0].log_softmax(-1)  # type: ignore[no-any-return]


class _Sequence:
    def __init__(self, place: int, prompt: list[int], slot: int) -> None:
        self.token_ids = prompt
        self.slot = slot
        self.num_computed = 0
        self._place = place

    def step(self) -> StepSequence:
        start, self.num_computed = self.num_computed, len(self.token_ids)
        table = range(self._place * _BLOCKS_EACH, (self._place + 1) * _BLOCKS_EACH)
        key = str(self._place)
        return StepSequence(self.token_ids[start:], start, table, key=key, lora_slot=self.slot)


def _run(runner: ModelRunner, sequences: list[_Sequence]) -> list[torch.Tensor]:
    """One step; the log-probabilities of each next token, the best of which is appended."""
    work = SampleWork(dict.fromkeys(range(len(sequences)), _WHOLE))
    result = runner.launch([each.step() for each in sequences], work).result()
    found = []
    for index, sequence in enumerate(sequences):
        row = result.sampled[index]
        assert row.scores is not None
        logprobs = torch.empty(_SHAPE["vocab_size"])
        logprobs[row.scores.token_ids] = torch.tensor(row.scores.values)
        found.append(logprobs)
        sequence.token_ids = [*sequence.token_ids, row.token_id]
    return found


@pytest.mark.parametrize("kind", _KINDS)
def test_each_sequence_gets_the_outputs_of_its_merged_model(
    tmp_path: Path, new_runner: RunnerOf, kind: str
) -> None:
    model = _save(tmp_path, kind)
    runner = _runner(new_runner, tmp_path, max_loras=3, max_lora_rank=8)
    adapters = {
        -1: None,
        0: _adapter(runner.adapter_targets, 0),
        1: _adapter(runner.adapter_targets, 1, "proj", rank=8),
        2: _adapter(runner.adapter_targets, 2, "v_proj", rank=1),
    }
    for slot, adapter in adapters.items():
        if adapter is not None:
            runner.set_adapter(slot, adapter)
    merged = {slot: _merged(model, adapter) for slot, adapter in adapters.items()}
    prompt = list(range(3, 15))
    sequences = [
        _Sequence(place, prompt[: 5 + place], slot) for place, slot in enumerate([1, 0, -1, 2, 0])
    ]

    for _ in range(3):  # the prompts, then decodes
        found = _run(runner, sequences)
        for sequence, actual in zip(sequences, found, strict=True):
            expected = _logprobs(merged[sequence.slot], sequence.token_ids[:-1])[-1]
            torch.testing.assert_close(actual, expected, atol=2e-4, rtol=2e-4)


def test_a_slot_holds_the_last_adapter_alone(tmp_path: Path, new_runner: RunnerOf) -> None:
    model = _save(tmp_path, "llama")
    runner = _runner(new_runner, tmp_path, max_lora_rank=8)
    first = _adapter(runner.adapter_targets, 0, rank=8)
    second = _adapter(runner.adapter_targets, 1, "layers.1", rank=2)
    for place, adapter in enumerate([first, second, None]):
        runner.set_adapter(0, adapter)
        sequence = _Sequence(place, [5, 6, 7, 8], 0)
        [actual] = _run(runner, [sequence])
        expected = _logprobs(_merged(model, adapter), [5, 6, 7, 8])[-1]
        torch.testing.assert_close(actual, expected, atol=2e-4, rtol=2e-4)


def test_prompt_scores_are_those_of_the_sequences_adapter(
    tmp_path: Path, new_runner: RunnerOf
) -> None:
    model = _save(tmp_path, "llama")
    runner = _runner(new_runner, tmp_path, max_loras=2)
    adapter = _adapter(runner.adapter_targets, 0)
    runner.set_adapter(1, adapter)
    prompt = [9, 8, 7, 6, 5]
    steps = [_Sequence(place, prompt, slot).step() for place, slot in enumerate([-1, 1])]
    part = PromptPart(0, prompt[1:], 0)

    result = runner.launch(steps, SampleWork(prompts={0: part, 1: part})).result()

    for index, of_index in enumerate([None, adapter]):
        logprobs = _logprobs(_merged(model, of_index), prompt)
        expected = [float(logprobs[place, token]) for place, token in enumerate(prompt[1:])]
        assert [scores.values[0] for scores in result.prompts[index]] == pytest.approx(
            expected, abs=2e-4
        )


def test_only_named_modules_have_room(tmp_path: Path, new_runner: RunnerOf) -> None:
    model = _save(tmp_path, "llama")
    runner = _runner(new_runner, tmp_path, target_modules=("q_proj", "v_proj", "up_proj"))
    assert set(runner.adapter_targets) == {
        f"model.layers.{layer}.{name}"
        for layer in range(2)
        for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
    }
    assert runner.adapter_targets["model.layers.0.self_attn.v_proj"] == (32, 64)
    adapter = _adapter(runner.adapter_targets, 0)
    runner.set_adapter(0, adapter)
    [actual] = _run(runner, [_Sequence(0, [5, 6, 7], 0)])
    expected = _logprobs(_merged(model, adapter), [5, 6, 7])[-1]
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=2e-4)


def test_without_a_lora_config_there_is_no_room(tmp_path: Path, new_runner: RunnerOf) -> None:
    _save(tmp_path, "llama")
    config = EngineConfig(model=tmp_path, device="cpu")
    runner = new_runner(resolve_config(config), ModelConfig.from_folder(tmp_path, {}), 64)
    assert runner.adapter_targets == {}
    assert all(getattr(each, "adapters", None) is None for each in runner.model.modules())
