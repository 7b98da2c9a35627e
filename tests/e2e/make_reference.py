"""Writes `data/smollm2_greedy.json`: Hugging Face's greedy fp32 output for the varied prompts.

    python -m tests.e2e.make_reference

Takes minutes, which is why the result is kept; `test_the_kept_reference_is_hugging_face_s` computes
some of the rows anew in every run.
"""

import json
from pathlib import Path
from typing import Any

import torch

from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.models.source import resolve_model
from tests.e2e.prompts import varied_prompts

REFERENCE = Path(__file__).parent / "data" / "smollm2_greedy.json"
MAX_TOKENS = 24


def load_hugging_face(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def hugging_face_greedy(model: Any, prompt: list[int]) -> list[int]:
    """The new tokens that `generate` gives for one prompt alone, the end token included."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False
    )
    return out[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def main() -> None:
    folder = resolve_model("smollm2")
    model = load_hugging_face(folder)
    rows = [
        {"prompt": prompt, "output": hugging_face_greedy(model, prompt)}
        for prompt in varied_prompts(Tokenizer.from_folder(folder))
    ]
    REFERENCE.parent.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    REFERENCE.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
