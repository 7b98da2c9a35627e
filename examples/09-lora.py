"""LoRA adapters beside their base model, in one batch. These two are random, and talk like it; give
your own folders, hub names or URLs in place of theirs.

Run: python examples/09-lora.py
"""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from octavo import LLM, SamplingParams
from octavo.lora.request import LoRARequest

NUM_LAYERS, HIDDEN_SIZE, RANK = 30, 576, 8  # of smollm2; the adapters' own
PROMPT = "The capital of France is"


def write_random_adapter(folder: Path, seed: int) -> str:
    """An adapter of the query projections, as PEFT saves one."""
    random = torch.Generator().manual_seed(seed)
    matrices = {}
    for layer in range(NUM_LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        a = torch.randn(RANK, HIDDEN_SIZE, generator=random) / HIDDEN_SIZE**0.5
        matrices[f"{name}.lora_A.weight"] = a
        matrices[f"{name}.lora_B.weight"] = torch.randn(HIDDEN_SIZE, RANK, generator=random)
    folder.mkdir()
    save_file(matrices, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def main() -> None:
    llm = LLM("smollm2", enable_lora=True, max_loras=2)
    with tempfile.TemporaryDirectory() as folder:
        adapters = [
            None,
            LoRARequest("first", 1, write_random_adapter(Path(folder, "first"), seed=1)),
            LoRARequest("second", 2, write_random_adapter(Path(folder, "second"), seed=2)),
        ]
        params = SamplingParams(temperature=0, max_tokens=8)
        for output in llm.generate([PROMPT] * 3, params, lora_request=adapters):
            name = output.lora_request.lora_name if output.lora_request else "smollm2"
            print(f"{name}: {output.outputs[0].text!r}")


if __name__ == "__main__":
    main()
