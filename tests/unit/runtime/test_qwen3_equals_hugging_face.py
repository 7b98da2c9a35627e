"""Tiny random Qwen3 checkpoints: the engine's tokens and logprobs equal Hugging Face's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.runtime.test_llama_equals_hugging_face import (
    BASE,
    edit_config,
    engine,
    greedy_with_logprobs,
)
from transformers import Qwen3Config, Qwen3ForCausalLM

from octavo_protocol.errors import ConfigError


def make(folder: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**(BASE | {"head_dim": 32} | changes))).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
        elif "norm" in name:  # ones would hide a head norm that is left out
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True},
        {"head_dim": 128, "num_key_value_heads": 1},
        {"head_dim": 80, "num_key_value_heads": 4},
        {"rms_norm_eps": 1e-2, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ],
    ids=["plain", "tied", "bias", "dim128-mqa", "dim80-mha", "eps-theta"],
)
def test_greedy_and_logprobs(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = make(tmp_path, **changes)
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


def test_a_checkpoint_without_head_norms_is_refused_by_name(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**BASE)).save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=["Qwen3ForCausalLM"])

    with pytest.raises(ConfigError, match=r"lacks 4 of 25 tensors, among them .*\.k_norm\.weight"):
        engine(tmp_path)
